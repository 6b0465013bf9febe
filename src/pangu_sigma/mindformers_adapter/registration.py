"""Registration for MindFormers' own run script.

REGISTER_PATH is this folder, and the YAML's section `trainer` has `auto_register: registration.PanGuSigmaTrainer`: MindFormers then
copies this file to OM_MODULES_CACHE and imports the class from there.
"""

from pangu_sigma.mindformers_adapter import register

register()

from pangu_sigma.mindformers_adapter.trainer import PanGuSigmaTrainer  # noqa: E402, F401 (the class that MindFormers takes)
