"""Settings of an experiment: strict and frozen. Keys have defaults, except the premises that a bound rests on.

A settings file lies in a folder `config/`; the paths it implies (data/..., results/...) are relative to the folder
above. A mark beside each key says which stages it reaches, so that the workflow reruns a stage exactly when one of its
own keys changes, and what the key is to the decoder and the claim. Importing this package loads no numerical library.
"""

from sublora.config.base import Base, Independence, PretrainedBase, RandomBase, TrainedBase
from sublora.config.bound import Bound, MessageSettings, Scoring
from sublora.config.corpus import (
    Corpus,
    Data,
    DocstringCorpus,
    FolderCorpus,
    FunctionCorpus,
    HuggingFaceCorpus,
    JsonDocumentationCorpus,
    MarkovCorpus,
    PackageCorpus,
    Unit,
)
from sublora.config.grid import ALL, Grid, RunSpec, allocation_modes
from sublora.config.loading import (
    given_values,
    load_settings,
    origin_of,
    parse_run,
    parse_settings,
    read_values,
    root_of,
    settings_text,
    with_text_dates,
    with_typed_overrides,
    write_resolved,
)
from sublora.config.marks import data_settings, first_difference, stage_settings
from sublora.config.network import (
    BLOCK_TARGETS,
    HEAD_TARGET,
    AnyModel,
    Gating,
    HuggingFaceModel,
    Lora,
    Model,
    SubspaceSettings,
    part_rank,
)
from sublora.config.section import STAGES, Budget, Section, Stage
from sublora.config.settings import Settings
from sublora.config.training import Compute, Optimization, RatePhaseSettings, Tracking, Training
from sublora.system.digests import json_sha256 as digest

__all__ = [
    "ALL",
    "BLOCK_TARGETS",
    "HEAD_TARGET",
    "STAGES",
    "AnyModel",
    "Base",
    "Bound",
    "Budget",
    "Compute",
    "Corpus",
    "Data",
    "DocstringCorpus",
    "FolderCorpus",
    "FunctionCorpus",
    "Gating",
    "Grid",
    "HuggingFaceCorpus",
    "HuggingFaceModel",
    "Independence",
    "JsonDocumentationCorpus",
    "Lora",
    "MarkovCorpus",
    "MessageSettings",
    "Model",
    "Optimization",
    "PackageCorpus",
    "PretrainedBase",
    "RandomBase",
    "RatePhaseSettings",
    "RunSpec",
    "Scoring",
    "Section",
    "Settings",
    "Stage",
    "SubspaceSettings",
    "Tracking",
    "TrainedBase",
    "Training",
    "Unit",
    "allocation_modes",
    "data_settings",
    "digest",
    "first_difference",
    "given_values",
    "load_settings",
    "origin_of",
    "parse_run",
    "part_rank",
    "parse_settings",
    "read_values",
    "root_of",
    "settings_text",
    "stage_settings",
    "with_text_dates",
    "with_typed_overrides",
    "write_resolved",
]
