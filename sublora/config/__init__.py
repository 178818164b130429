"""Settings of an experiment: strict, frozen, and complete (every key must be given).

A settings file lies in a folder `config/`; the paths it implies (data/..., results/...) are relative to the
folder above. Each key says beside itself which stages it reaches, so that the workflow can rerun a stage exactly when
one of its own keys changes. Light to import: no numerical library.
"""

from sublora.config.bound import Bound, Message, Scoring
from sublora.config.data import Corpus, Data, DocstringCorpus, FolderCorpus, HuggingFaceCorpus, MarkovCorpus
from sublora.config.grid import Grid, RunSpec, parse_allocation
from sublora.config.loading import load_settings, parse_run, parse_settings, root_of
from sublora.config.model import Gating, Lora, Model, Subspace
from sublora.config.reach import STAGES, Stage
from sublora.config.section import Section
from sublora.config.settings import Settings
from sublora.config.stages import data_settings, digest, stage_settings
from sublora.config.training import Compute, RatePhase, Training

__all__ = [
    "STAGES",
    "Bound",
    "RatePhase",
    "Compute",
    "Corpus",
    "Data",
    "DocstringCorpus",
    "FolderCorpus",
    "Gating",
    "Grid",
    "HuggingFaceCorpus",
    "Lora",
    "MarkovCorpus",
    "Message",
    "Model",
    "RunSpec",
    "Scoring",
    "Section",
    "Settings",
    "Stage",
    "Subspace",
    "Training",
    "data_settings",
    "digest",
    "load_settings",
    "parse_allocation",
    "parse_run",
    "parse_settings",
    "root_of",
    "stage_settings",
]
