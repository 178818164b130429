"""The folder that `sublora adapt` fills, and which stages have left their results there for the settings in force.

    config/config.yaml    the settings, written once budget and steps are chosen
    results/adapt.json    what was asked for, the plan, and a key for each finished stage
    README.md             the certified statement
    data/, results/       as the workflow has them

A stage is done if its files are there and were made from the same settings, numerics and files.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from sublora import config
from sublora.data.base_and_target import open_target
from sublora.data.corpora import open_reader
from sublora.runs.base import base_digest
from sublora.runs.base_files import named_base_sha256, own_base_weights, read_base_facts
from sublora.system.errors import UserError
from sublora.system.files import read_json, sha256_of_file, write_json
from sublora.system.names import (
    BASE_FOLDER,
    BASE_JSON_NAME,
    BASE_LOSSES_PATH,
    BOUNDS_NAME,
    CERTIFICATE_NAME,
    CHECKPOINT_NAME,
    LOSSES_NAME,
)
from sublora.system.versions import NUMERICS_VERSIONS
from sublora.tools.adapt.plan import AdaptPlan
from sublora.tools.adapt.settings import AdaptRequest, independence, write_settings_file
from sublora.training import checkpoint
from sublora.yardsticks.record import YARDSTICKS_PATH

FORMAT = 1
"""Version of the layout of adapt.json."""
Recorded = Literal["yardsticks", "score", "bound", "verify"]
"""Stages of which adapt.json says that they are done; the files of the others tell it."""


@dataclasses.dataclass(frozen=True)
class AdaptFolder:
    """Files and state of one adaptation."""

    root: Path

    @property
    def config_path(self) -> Path:
        return self.root / "config" / "config.yaml"

    @property
    def readme_path(self) -> Path:
        return self.root / "README.md"

    @property
    def state_path(self) -> Path:
        return self.root / "results" / "adapt.json"

    def run_folder(self, settings: config.Settings) -> Path:
        """Return the folder of the only run."""
        (spec,) = settings.grid.runs()
        return self.root / "results" / "runs" / spec.name

    # What was decided

    def decided(self, request: AdaptRequest) -> tuple[config.Settings, AdaptPlan] | None:
        """Return settings and plan of the same request, None if there are none yet.

        A statement of independence that comes later is written into the settings.

        Raises:
            UserError: the folder holds another request's results, or files that this command has not written.
        """
        if not self.state_path.exists():
            for path in (self.config_path, self.readme_path):
                if path.exists():
                    raise UserError(f"{path}: not written by sublora adapt; give another folder with --out")
            return None
        state = self._state()
        if difference := request.difference(state["request"]):
            raise UserError(
                f"{self.root}: holds what another sublora adapt was asked for ({difference}); give another folder with "
                "--out, or delete this one"
            )
        settings, plan = config.load_settings(self.config_path), AdaptPlan(**state["plan"])
        if len(settings.grid.runs()) != 1:
            raise UserError(
                f"{self.config_path}: {len(settings.grid.runs())} runs under grid, sublora adapt makes one; run "
                f"snakemake --directory {self.root}"
            )
        if request.independence is not None and isinstance(settings.base, config.PretrainedBase):
            base = settings.base.model_copy(update={"independence": independence(request.independence)})
            if base != settings.base:
                settings = settings.model_copy(update={"base": base})
                write_settings_file(settings, self.config_path)
        return settings, plan

    def decide(self, request: AdaptRequest, settings: config.Settings, plan: AdaptPlan) -> None:
        """Write the settings and, last, the state."""
        write_settings_file(settings, self.config_path)
        facts = {"request": request.as_json(), "plan": dataclasses.asdict(plan), "stages": {}}
        write_json(self.state_path, {"format": FORMAT} | facts)

    # Which stages are done

    def changed_documents(self, settings: config.Settings) -> bool | None:
        """Return whether the documents have changed since they were prepared with these settings; None if never were.

        Their number of files and bytes tells. UserError if the documents cannot be found.
        """
        found = open_reader(settings.data.corpus, self.root).provenance()
        try:
            made = open_target(settings, self.root).meta.provenance.model_dump()
        except UserError:
            return None
        return any(made.get(key) != value for key, value in found.items())

    def has_base(self, settings: config.Settings) -> bool:
        """Return whether results/base holds the base of these settings."""
        if not own_base_weights(self.root).exists() or not (self.root / BASE_FOLDER / BASE_JSON_NAME).exists():
            return False
        try:
            return bool(read_base_facts(self.root / BASE_FOLDER)["digest"] == base_digest(settings, self.root))
        except UserError:
            return False

    def is_trained(self, settings: config.Settings) -> bool:
        """Return whether the run's checkpoint is that of a finished training with these settings, data and base."""
        path = self.run_folder(settings) / CHECKPOINT_NAME
        if not path.exists():
            return False
        (spec,) = settings.grid.runs()
        data_hash = open_target(settings, self.root).data_hash
        wanted = checkpoint.training_digest(settings, spec, data_hash, named_base_sha256(settings, self.root))
        return bool(checkpoint.load(path)["digest"] == wanted)

    def is_done(self, stage: Recorded, settings: config.Settings) -> bool:
        """Return whether the files of a later stage are there, made from what is there now."""
        _, made = self._files(stage, settings)
        return all(path.exists() for path in made) and self._state()["stages"].get(stage, {}).get("key") == self._key(
            stage, settings
        )

    def done(self, stage: Recorded, settings: config.Settings, **facts: Any) -> None:
        """Record that a stage has ended, with facts about it."""
        state = self._state()
        state["stages"][stage] = {"key": self._key(stage, settings)} | facts
        write_json(self.state_path, state)

    def facts(self, stage: Recorded) -> dict[str, Any]:
        """Return what `done` recorded."""
        return dict(self._state()["stages"][stage])

    def _files(self, stage: Recorded, settings: config.Settings) -> tuple[list[Path], list[Path]]:
        """Return the files that a stage reads, and those that it writes."""
        run = self.run_folder(settings)
        base = [self.root / BASE_FOLDER / BASE_JSON_NAME]
        losses, scored = self.root / BASE_LOSSES_PATH, [run / CERTIFICATE_NAME, run / LOSSES_NAME]
        return {
            "yardsticks": (base, [losses, self.root / YARDSTICKS_PATH]),
            "score": ([*base, losses, run / CHECKPOINT_NAME], scored),
            "bound": (scored, [run / BOUNDS_NAME]),
            "verify": ([*base, *scored, run / BOUNDS_NAME, self.config_path], []),
        }[stage]

    def _key(self, stage: Recorded, settings: config.Settings) -> str:
        """Return a digest of what a stage depends on."""
        read, _ = self._files(stage, settings)
        own: dict[str, Any] = {}
        if stage != "verify":
            own = {"settings": config.stage_settings(settings, stage), "numerics": NUMERICS_VERSIONS[stage]}
        return config.digest(
            {
                "own": own,
                "extra_bits": settings.message.extra_bits,
                "data": open_target(settings, self.root).data_hash,
                "files": [sha256_of_file(path) if path.exists() else None for path in read],
            }
        )

    def _state(self) -> dict[str, Any]:
        fix = "delete it, with config/config.yaml and README.md beside it"
        state = read_json(self.state_path, missing="", fix=fix)
        plan_keys = {field.name for field in dataclasses.fields(AdaptPlan)}
        if not (
            isinstance(state, dict)
            and state.get("format") == FORMAT
            and all(isinstance(state.get(key), dict) for key in ("request", "plan", "stages"))
            and state["plan"].keys() == plan_keys
        ):
            raise UserError(f"{self.state_path}: expected a state of sublora adapt, format {FORMAT}; {fix}")
        return state
