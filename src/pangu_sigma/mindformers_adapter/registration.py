"""Registration for MindFormers' own run entry.

REGISTER_PATH names this folder, and the YAML's section `trainer` says `auto_register: registration.PanGuSigmaTrainer`: MindFormers
then copies this file to OM_MODULES_CACHE and takes the class from there.
"""

from pangu_sigma.mindformers_adapter import register

register()

from pangu_sigma.mindformers_adapter.trainer import PanGuSigmaTrainer  # noqa: E402, F401 (the class that MindFormers takes)
