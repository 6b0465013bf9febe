"""What is known of each chip goes together, and a configuration that names a chip gets its 16-bit type."""

import pytest

from pangu_sigma.chips import CHIP_DATA, CHIP_NAMES
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import config_path, load_config


@pytest.mark.parametrize("name", CHIP_NAMES)  # every name has data
def test_what_is_known_of_a_chip_goes_together(name):
    chip = CHIP_DATA[name]
    assert {"float16", "float32", chip.half} <= set(chip.flops)
    assert chip.dropless == (chip.half == "bfloat16") == (not chip.saturates)
    assert chip.hbm > chip.hccs > chip.network
    assert chip.host_memory > chip.per_host * chip.memory, "ECSS keeps on the host what NPUs have no room for"


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ([], "float16"),
        (["parallel.chip=910b"], "bfloat16"),
        (["parallel.chip=910_93"], "bfloat16"),  # a number to YAML
        (["parallel.chip=910b", "train.compute_dtype=float16"], "float16"),
    ],
)
def test_half_is_the_chip_s(settings, dtype):
    assert load_config(config_path("sigma_1t"), settings).train.compute_dtype == dtype


def test_an_unknown_chip_is_refused_where_it_stands():
    with pytest.raises(ConfigError, match=r"parallel\.chip"):
        load_config(config_path("sigma_1t"), ["parallel.chip=920"])
