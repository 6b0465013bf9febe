"""For MindFormers' own run entry: with REGISTER_PATH naming this folder, and `auto_register: registration.PanGuSigmaTrainer` in the
YAML's section `trainer`, MindFormers copies this file to OM_MODULES_CACHE and takes the class from there."""

from pangu_sigma.mindformers_adapter import register

register()
