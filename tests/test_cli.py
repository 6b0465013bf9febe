from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from helpers.ascend_host import AscendHost
from helpers.hf_folders import overflowing_hf_folder

import pangu_sigma as ps
from experiments.chaos.launched import free_port
from experiments.tiny import STEPS, tiny_tree
from pangu_sigma import cli
from pangu_sigma.arguments import AnyConfig, AnyPath, AtLeastOne, checked
from pangu_sigma.chips import CHIP_DATA
from pangu_sigma.cli import EXIT_STATUSES, main
from pangu_sigma.config_file import load_config, shipped_configs
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.results import Result
from pangu_sigma.training import loop
from pangu_sigma.training.log.report import write_report
from pangu_sigma.training.start import start_run
from pangu_sigma.writable import folder_lock


@pytest.fixture
def file(tmp_path, request) -> Path:
    """The tiny configuration as YAML; its data folder exists in tests that ask for it."""
    data = request.getfixturevalue("tiny_data") if "tiny_data" in request.fixturenames else tmp_path / "none"
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree(data), allow_unicode=True), encoding="utf-8")
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that must end with status 2, without a traceback and without output."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err[captured.err.index("error: ") :]


def prints(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Standard output of a command that must succeed."""
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["prepare-data", "train", "inspect"])
def test_print_config_prints_a_configuration_that_reads_back_equal(file, capsys, tmp_path, command):
    arguments = [command, file, "--set", "train.steps=7", "--print-config"]
    text = prints(capsys, *arguments, "--json", tmp_path / "printed.json")
    (tmp_path / "printed.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "printed.yaml")
    assert config == load_config(file, ["train.steps=7"])
    assert yaml.safe_load(text)["train"]["optimizer"]["beta1"] == 0.8, "defaults are filled in"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["printed.json", "printed.yaml", "tiny.yaml"], "nothing else"
    assert json.loads(prints(capsys, *arguments, "--json", "-")) == config.model_dump(mode="json")
    assert json.loads((tmp_path / "printed.json").read_text(encoding="utf-8")) == config.model_dump(mode="json")


def test_inspect_counts_as_json_and_as_text(file, capsys, tmp_path):
    tree, count = json.loads(prints(capsys, "inspect", file, "--json", "-")), load_config(file).num_params()
    experts = tree["experts"]
    assert (tree["params"]["total"], experts["stored_per_layer"], experts["active_per_layer_at_most"]) == (
        count.total,
        6,
        4,
    )
    table = prints(capsys, "inspect", file, "--json", tmp_path / "out.json")
    assert f"{count.total:,}" in table and table == prints(capsys, "inspect", file), "a file silences nothing"
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == tree


def test_a_missing_compiler_is_one_message(file, tiny_data, tmp_path):
    """In a process of its own, whose PATH has nothing and whose cache has no kernels."""
    environment = os.environ | {"PATH": str(tmp_path), "PANGU_SIGMA_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = ":".join(sys.path)
    command = [sys.executable, "-m", "pangu_sigma", "train", str(file), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "error: g++ is needed to compile the CPU kernels and is not on PATH; install it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_launch_hands_on_the_name_of_a_shipped_configuration(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = prints(capsys, "launch", "sigma_tiny", "--nodes", 2, "--set", "parallel.data=2", "--dry-run")
    assert "train sigma_tiny --output runs/sigma_tiny" in started, "each node finds its own"


def test_help_tells_the_exit_statuses_once_and_is_shown_where_no_command_is_named(capsys):
    assert prints(capsys, "--version") == f"pangu-sigma {ps.__version__}\n"
    shown = prints(capsys, "--help")
    assert EXIT_STATUSES in shown
    assert re.findall(r"^  (\d+)", EXIT_STATUSES, re.MULTILINE) == ["0", "1", "2", "130"]
    assert main([]) == 2
    assert capsys.readouterr().out == shown


def test_no_character_and_no_closed_stream_ends_a_command():
    command, latin = shlex.join([sys.executable, "-m", "pangu_sigma"]), os.environ | {"PYTHONIOENCODING": "latin-1"}
    shown = subprocess.run(f"{command} --help", shell=True, env=latin, capture_output=True, check=True)
    assert rb"PanGu-\u03a3 on MindSpore" in shown.stdout
    program = "from pangu_sigma import cli; cli._mend_streams(); print(ascii(input()))"
    escaped = subprocess.run([sys.executable, "-c", program], input=b"a\xff\n", capture_output=True, check=True)
    assert escaped.stdout == b"'a\\udcff'\n"
    closed = subprocess.run(f"{command} inspect sigma_tiny >&- <&-", shell=True, stderr=subprocess.PIPE, check=True)
    assert closed.stderr == b""
    for options, status in (("inspect sigma_tiny --quiet", 0), ("inspect nope", 2)):
        assert subprocess.run(f"{command} {options} >&- 2>&-", shell=True, check=False).returncode == status


COMMANDS = [
    *("prepare-data", "train", "launch", "finetune", "evaluate", "benchmark", "report", "inherit", "extend", "extract"),
    *("export", "generate", "chat", "serve", "inspect", "plan", "doctor", "completion"),
]


def test_the_commands_are_functions_of_the_face(capsys):
    assert re.findall(r"^  ([a-z-]+): ", prints(capsys, "--help"), re.MULTILINE)[:-1] == [*COMMANDS, "--help, -h"][:-1]
    for function in cli.COMMANDS:
        assert getattr(ps, function.__name__) is function


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_a_word_on_every_option_and_examples_that_the_command_understands(command, capsys):
    text = prints(capsys, command, "--help")
    options = re.findall(r"^  (\S.*?)(?::|$)", text.split("\nexamples:")[0], re.MULTILINE)
    assert [line for line in re.findall(r"^  (?:--|[A-Z]).*", text, re.MULTILINE) if ": " not in line] == []
    assert all("False" not in option for option in options)
    examples = text.split("\nexamples:\n")[1].strip().splitlines()
    assert 1 <= len(examples) <= 3
    for example in examples:
        program, *arguments = shlex.split(example.split(" > ")[0])
        assert program == "pangu-sigma"
        cli.make_app().parse_args(arguments, exit_on_error=False, print_error=False)
        for name in set(arguments) & {"sigma_tiny", "sigma_1t"}:
            assert name in shipped_configs()


def test_a_new_command_costs_its_function_and_nothing_else(capsys, monkeypatch, tmp_path):
    @checked
    def count(model: AnyPath, *, by: Literal["step", "epoch"] = "step", most: AtLeastOne = 3) -> Result:
        """Count.

        Args:
            model: a run.
            by: what is counted.
            most: where it ends.

        Examples:
            pangu-sigma count runs/a
        """
        return Result({"by": by, "most": most}, f"{Path(model).name} by {by} to {most}")

    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, count))
    assert prints(capsys, "count", tmp_path / "a", "--by", "epoch", "--most", 4) == "a by epoch to 4\n"
    assert json.loads(prints(capsys, "count", "a", "--json", "-")) == {"by": "step", "most": 3}
    assert "--by CHOICE: what is counted. [choices: step, epoch] [default: step]" in prints(capsys, "count", "--help")
    assert 'Invalid value "eposh" for --by' in fails(capsys, "count", "a", "--by", "eposh")
    assert "--most=0 is not allowed: it must be greater than" in fails(capsys, "count", "a", "--most", 0)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_knows_commands_and_options(shell, capsys, tmp_path):
    assert str(tmp_path / "script") in prints(capsys, "completion", "--shell", shell, "-o", tmp_path / "script")
    script = (tmp_path / "script").read_text()
    for word in (*COMMANDS, "--max-new-tokens", "mindir"):
        assert word in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_a_run_that_never_trained_is_refused_with_what_to_do(file, tiny_data, capsys, tmp_path):
    start_run(tmp_path / "run", load_config(file))
    assert "holds no checkpoint; train the run, or wait for its first one" in fails(
        capsys, "evaluate", tmp_path / "run"
    )
    assert "train it first" in fails(capsys, "report", tmp_path / "run")


def test_export_there_and_back_says_what_it_wrote_and_inspect_looks_into_it(tiny_run, capsys, tmp_path, caplog):
    caplog.set_level("INFO")
    out = prints(capsys, "export", tiny_run, "-o", tmp_path / "hf", "--format", "hf")
    assert out == f"{tmp_path / 'hf'}\n"
    assert f"all weights of {tiny_run}, without optimizer state" in caplog.messages
    prints(capsys, "export", tmp_path / "hf", "-o", tmp_path / "again", "--format", "run")
    found = json.loads(prints(capsys, "inspect", tmp_path / "again", "--verify", "--json", "-"))
    assert (found["kind"], found["step"], found["lineage"]["parent_step"]) == ("run", 0, STEPS)


def test_evaluate_measures_any_text(capsys, tiny_run, tmp_path):
    """tests/test_loaded.py has the numbers."""
    file, evaluate = tmp_path / "mine.jsonl", ["evaluate", tiny_run, "--domain", "en"]
    file.write_text('{"text": "the cat sees a dog"}\n{"txt": "the"}\n')
    text = prints(capsys, *evaluate, "--input", file)
    assert text.splitlines()[0].endswith("nats per token") and "held-out" not in text
    assert prints(capsys, *evaluate, "--text", "the cat sees a dog") == text
    losses = json.loads(prints(capsys, *evaluate, "--input", file, "--json", "-", "--set", "data.text_key=txt"))
    assert losses["en"]["tokens"] == 1, "the other record: the, <eot>"


def test_a_model_that_overflows_is_an_error_of_generate_and_a_row_of_evaluate(capsys, tmp_path, caplog):
    """Weights of 1e38 are finite, so a look at them finds nothing."""
    folder, file = overflowing_hf_folder(tmp_path / "hf", "en"), tmp_path / "mine.jsonl"
    said = fails(capsys, "generate", folder, "--domain", "en", "--prompt", "the cat")
    assert said.startswith("error: domain en: the logits after ") and "are not finite" in said
    assert prints(capsys, "generate", folder, "--domain", "zh", "--prompt", "今天", "--max-new-tokens", 2)
    file.write_text('{"text": "the cat", "domain": "en"}\n{"text": "今天天气", "domain": "zh"}\n')
    caplog.clear()
    assert main(["evaluate", str(folder), "--input", str(file)]) == 1
    zh, en = capsys.readouterr().out.splitlines()[1:]
    assert en.split()[:3] == ["en", "not", "finite"] and "finite" not in zh
    assert "the loss of en is not finite" in caplog.text
    found = ps.evaluate(folder, input=file)
    assert (found["en"]["loss"], found.ok) == (None, False) and found["zh"]["loss"] > 0


def test_report_draws_the_page_anew_and_compares_with_several_runs(tiny_run, tmp_path, capsys):
    run, other = (shutil.copytree(tiny_run, tmp_path / name) for name in ("run", "other"))
    page = Path("report", "report.html")
    drawn = [write_report(folder).stat().st_mtime_ns for folder in (run, other)]
    first, *summaries = json.loads(prints(capsys, "report", run, "--against", other, run, "--json", "-"))
    assert (first["steps"], first["report"]) == (STEPS, str(run / page))
    assert [summary.keys() - first.keys() for summary in summaries] == [{"differences"}] * 2
    assert summaries[0]["differences"]["en"]["se"] == 0.0
    assert (run / page).stat().st_mtime_ns > drawn[0]
    assert (other / page).stat().st_mtime_ns == drawn[1], "the page of another run stays as it is"
    text = prints(capsys, "report", run, "--against", other, run)
    assert text.count("held-out; ± over samples") == 2
    assert text.splitlines()[-1] == f"report       {run / page}"
    text = prints(capsys, "report", run)
    assert all(f"{first['domains'][name]['loss_after']:.3f}" in text for name in ("zh", "en", "code"))


def test_generate_answers_each_prompt(tiny_run, capsys):
    prompts = [
        "--domain",
        "en",
        "--prompt",
        "the cat: and ",
        "--domain",
        "zh",
        "--prompt",
        "今天",
        "--max-new-tokens",
        3,
    ]
    answers = json.loads(prints(capsys, "generate", tiny_run, *prompts, "--json", "-"))
    assert [(a["domain"], a["prompt"]) for a in answers] == [("en", "the cat: and "), ("zh", "今天")]
    lines = [f"[{a['domain']}] {a['prompt']}|{a['text']}" for a in answers]
    assert prints(capsys, "generate", tiny_run, *prompts) == "\n".join([*lines, ""])


def test_generate_reads_a_prompt_a_line_from_a_file_or_from_standard_input(tiny_run, capsys, tmp_path, monkeypatch):
    options = ["--domain", "en", "--max-new-tokens", 3, "--json", "-"]
    generate, lines = ["generate", tiny_run, *options], tmp_path / "lines.txt"
    expected = prints(capsys, *generate, "--prompt", "the cat", "--prompt", "a dog ")
    lines.write_text("\ufeffthe cat\r\na dog \n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat\na dog ")))
    for source in (lines, "-"):
        assert prints(capsys, *generate, "--prompts", source) == expected
    lines.write_bytes(b"a\n\xff")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.read_bytes())))
    for source in (lines, "-"):
        said = fails(capsys, *generate, "--prompts", source)
        assert f"--prompts {source}: line 2 is empty, or not UTF-8; write a prompt a line" in said


def test_every_option_of_sampling_is_one_of_generate(tiny_run, capsys):
    """Each one changes what is drawn, or ends it."""
    command = ["generate", tiny_run, "--domain", "en", "--prompt", "the cat"]
    command += ["--max-new-tokens", 12, "--temperature", 2]

    def drawn(*options: object) -> str:
        (found,) = json.loads(prints(capsys, *command, *options, "--json", "-"))
        return found["text"]

    plain = drawn()
    options = {"top-k": 2, "top-p": 0.2, "min-p": 0.5}
    options |= {"repetition-penalty": 5, "presence-penalty": 2, "frequency-penalty": 2}
    assert {name.replace("-", "_") for name in options} | {"temperature"} == {*Sampling.model_fields}
    for name, value in options.items():
        assert drawn(f"--{name}", value) != plain, name
    assert drawn("--stop", plain[3:5]) == plain.split(plain[3:5])[0]


def test_serve_serves_a_run_until_it_is_ended(tiny_run):
    """In a process of its own, as a user runs it."""
    arguments = [sys.executable, "-m", "pangu_sigma", "serve", str(tiny_run), "--port", "0", "--set", "lanes=2"]
    arguments += ["--weights", "int8"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("copied as int8" in line for line in iter(process.stderr.readline, "") if line.startswith("weights "))
    url = next(line for line in process.stderr if line.startswith("serving ")).split(" at ")[1].strip()
    body = json.dumps({"model": "sigma-en", "prompt": "the", "max_tokens": 3}).encode()
    asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert json.load(answer)["usage"]["prompt_tokens"] >= 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()


def test_train_goes_on_with_what_the_run_has(tiny_data, tiny_run, capsys, tmp_path, monkeypatch):
    """From another folder, without a configuration file, which is not needed any more."""
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load(prints(capsys, "train", "run", "--print-config"))["train"]["steps"] == STEPS
    text = prints(capsys, "train", "run", "--set", "train.steps=12", "--print-config")
    assert yaml.safe_load(text)["train"]["steps"] == 12
    summary = prints(capsys, "train", "run")
    assert f"step_{STEPS:08d}" in summary and "held-out loss" in summary
    assert (copy / "configuration.json").read_bytes() == (tiny_run / "configuration.json").read_bytes()


def test_a_second_writer_is_refused_with_status_2_before_the_work(tiny_run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("the work has begun"))
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    with folder_lock(copy):
        assert f"{copy} is written by process {os.getpid()}" in fails(capsys, "train", copy)
        launch = ["launch", copy, "--start-over", "--master-port", free_port()]
        assert f"{copy} is written by process" in fails(capsys, *launch)


def test_prepare_data_reads_the_users_text(file, capsys, tmp_path):
    text = tmp_path / "a.jsonl"
    lines = [{"domain": d, "text": f"text {i} of {d}"} for i in range(20) for d in ("zh", "en", "code")]
    text.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--set", "vocabulary.english_pieces=270", "--input"]
    assert main(["prepare-data", str(file), "--check", *options, str(text)]) == 0
    assert "shift" in capsys.readouterr().out and not (tmp_path / "none").exists()
    assert main(["prepare-data", str(file), *options, str(text)]) == 0
    manifest = json.loads((tmp_path / "none" / "en" / "manifest.json").read_text())
    assert manifest["domains"]["en"]["train"]["documents"] == 18
    text.write_text(json.dumps(lines[0]))
    capsys.readouterr()
    assert main(["prepare-data", str(file), "--check", *options, str(text)]) == 1
    assert "domain en: 0 usable documents" in capsys.readouterr().out


def test_a_full_disk_is_named(file, capsys, tmp_path, monkeypatch):
    def full(*_: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pangu_sigma.sealed.sync", full)
    assert main(["inspect", str(file), "--json", str(tmp_path / "a.json")]) == 2
    assert not (tmp_path / "a.json").exists(), "the next call would refuse half a file as existing"
    assert f"error: {tmp_path}/a.json: No space left on device; free space on that disk" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "chip"),
    [([], None), (["--set", "parallel.chip=910b4"], "910b4")],
    ids=["nobody", "setting"],
)
def test_a_launch_is_for_the_chip_of_the_configuration_whatever_the_host_has(
    arguments, chip, file, tmp_path, monkeypatch, capsys
):
    """`devices_of` refuses a host of another family when ranks are started."""
    host = AscendHost(tmp_path / "host", "910_93", 2).host
    monkeypatch.setattr("pangu_sigma.npu.host.environment.Host", lambda: host)
    monkeypatch.delenv("MS_ASCEND_CHECK_OVERFLOW_MODE", raising=False)
    printed = prints(capsys, "launch", file, "--device", "ascend", "--dry-run", *arguments)
    assert f"MS_ASCEND_CHECK_OVERFLOW_MODE={'INFNAN' if chip else 'SATURATION'}_MODE" in printed
    title = CHIP_DATA[chip or "910a"].title
    assert f"# on every node: 1 of the {CHIP_DATA[chip or '910a'].per_host} {title} of a server" in printed
    assert re.findall(r"parallel\.chip=(\w+)", printed) == ([chip] if chip else [])


def test_a_host_is_not_given_more_ranks_than_it_has_npus(file, capsys):
    launch = ["launch", file, "--device", "ascend", "--set", "parallel.data=16", "--set", "train.batch_size=32"]
    for more in (["--dry-run"], []):
        told = fails(capsys, *launch, *more)
        assert "--nodes 1: the parallel section lays out 16 ranks" in told
        assert "Ascend 910A (parallel.chip=910a) has 8 NPUs; use --nodes 2" in told
    assert "16 of the 16 Ascend 910_93" in prints(capsys, *launch, "--set", "parallel.chip=910_93", "--dry-run")


def test_ctrl_c_and_a_reader_that_is_gone_end_without_a_traceback(file):
    """In processes of their own, as a shell starts them."""
    command = [sys.executable, "-m", "pangu_sigma", "inspect", str(file)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    code = (
        "import os, signal, sys; from pangu_sigma.cli import main; import pangu_sigma.inspection.inspect as i;"
        "i.inspect = lambda config: os.kill(os.getpid(), signal.SIGINT); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "inspect", str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_training_that_was_stopped_ends_as_interrupted(file, tmp_path, monkeypatch):
    """So that `train … && evaluate …` does not go on with a model that is half trained."""
    for stopped, status in ((True, 130), (False, 0)):

        def train(config: AnyConfig, output: AnyPath | None = None, stopped: bool = stopped) -> ps.Model:
            """Train."""
            return ps.Model(tmp_path, stopped=stopped)

        monkeypatch.setattr(cli, "COMMANDS", (train,))
        assert main(["train", str(file), "--output", str(tmp_path / "run")]) == status


def test_quiet_leaves_warnings_errors_and_the_result(file, tiny_data, tmp_path):
    """In processes of their own: how much is logged is a setting of the process."""
    command = [sys.executable, "-m", "pangu_sigma", "train", str(file), "-o", str(tmp_path / "run")]
    keys = {"train.steps": 2, "train.optimizer.warmup_steps": 2, "model.dense_layers": 0, "model.rre_layers": 1}
    command += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "held-out loss" in done.stdout
    loud = subprocess.run([*command, "--start-over"], capture_output=True, text=True, check=True)
    assert "train 0/2" in loud.stderr.splitlines()
    assert "\r" not in loud.stderr
