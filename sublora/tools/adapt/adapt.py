"""From documents and a pretrained model to a certificate: every stage in its order, where they stopped last time."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sublora import config
from sublora.bounds.smoothing import DocumentMixture
from sublora.data.base_and_target import open_target
from sublora.data.corpora import open_reader
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_all
from sublora.data.tokenizers import pretrained_tokenizer
from sublora.losses.documents import score_documents
from sublora.runs.base import make_base
from sublora.runs.bound import bound_run
from sublora.runs.build import build_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.files import Claim, Options
from sublora.runs.verify.verify import verify_claim
from sublora.runs.yardsticks import make_yardsticks
from sublora.system.device import claim_device, peak_memory_mib
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_bytes
from sublora.system.names import BOUNDS_NAME
from sublora.tools.adapt.display import Display
from sublora.tools.adapt.folder import AdaptFolder
from sublora.tools.adapt.plan import (
    AdaptPlan,
    candidate_budgets,
    choose_budget,
    chosen_steps,
    make_adapt_plan,
    shortfall,
)
from sublora.tools.adapt.settings import (
    AdaptRequest,
    DocumentFacts,
    ModelFacts,
    adapt_settings,
    count_documents,
    fixed_revision,
    in_options,
    located,
    model_facts,
)
from sublora.tools.expected_bound import KnownData
from sublora.tools.plan import make_plan
from sublora.tools.statement import NOT_STATED, card, independence_in_words, readme
from sublora.tools.throughput import measure_throughput
from sublora.training.resumable import BeforeStep, Interrupted

STAGES = ("prepare", "base", "plan", "yardsticks", "train", "score", "bound", "verify")


@dataclasses.dataclass(frozen=True)
class Adapted:
    """What `adapt` has made."""

    folder: Path
    plan: AdaptPlan
    text: str
    """The card; after a dry run the plan."""
    bounds: dict[str, Any] | None = None
    """bounds.json; None after a dry run."""
    verified: bool | None = None
    """The verdict; None after a dry run."""


def adapt(
    documents: Path | str,
    *,
    model: Path | str,
    out: Path | str,
    revision: str | None = None,
    text: str = "text",
    unit: str | None = None,
    targets: tuple[str, ...] | None = None,
    budget: int | None = None,
    hours: float | None = None,
    steps: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    independence: str | None = None,
    dry_run: bool = False,
    anyway: bool = False,
    before_step: BeforeStep | None = None,
) -> Adapted:
    """Adapt a pretrained model to documents and certify it on new ones; the same call goes on where it stopped.

    Every stage writes into `out` what the workflow's rules would, so Snakemake takes the folder as it is. While a stage
    runs, sys.stderr is redirected to logs/adapt/ in there.

    Args:
        documents: a file or a folder of documents, as `data.corpus.kind: folder` reads them.
        model: a folder in the format of Hugging Face, or a model's name on the hub.
        out: the folder of all results.
        revision: branch, tag or commit on the hub; the commit is written into the settings.
        text: key of the text in a line.
        unit: key of what was drawn independently; None: each document.
        targets: names of the linear maps to adapt; None: those that peft adapts.
        budget: d; None: the one with the largest gain to be expected.
        hours: time for the training, in place of `steps`.
        steps: of the training; None: 300.
        device: None: a GPU if there is one.
        independence: why the model was fixed without the documents, in words; stored in the certificate.
        dry_run: prepare documents and base, which later calls use, and return with the plan.
        anyway: train even if no gain is expected to be certified.
        before_step: called with the number of each step of the training.

    Raises:
        UserError: an argument, the documents or the model do not fit, the folder holds something else, or no gain is to
            be expected (see `anyway`).
    """
    out = Path(out)
    places = located(Path(documents), str(model), revision, out)
    request = AdaptRequest(
        *places,
        revision=revision,
        text_field=text,
        unit=unit,
        targets=targets,
        budget=budget,
        hours=hours,
        steps=steps,
        device=device,
        independence=independence,
    )
    folder = AdaptFolder(out)
    decided = folder.decided(request)
    with Display(STAGES, out / "logs" / "adapt") as display:
        job = _Job(request, folder, display, before_step)
        try:
            if decided is None:
                settings, plan = job.decide()
                if not dry_run and (anyway or plan.shortfall is None):
                    folder.decide(request, settings, plan)
            else:
                settings, plan = decided
                job.prepare(settings)
                job.base(settings)
                display.skip("plan")
            if dry_run:
                return Adapted(out, plan, "\n".join(plan.lines()))
            if plan.shortfall is not None and not anyway:
                raise UserError(f"{plan.shortfall}; give more documents, or go on with --anyway")
            return job.run(settings, plan)
        except UserError as error:
            raise in_options(error) from None
        except (KeyboardInterrupt, Interrupted):
            display.say("stopped; the same command goes on from here")
            raise


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """The stages of one adaptation."""

    request: AdaptRequest
    folder: AdaptFolder
    display: Display
    before_step: BeforeStep | None

    @property
    def root(self) -> Path:
        return self.folder.root

    # Before the training

    def decide(self) -> tuple[config.Settings, AdaptPlan]:
        """Prepare documents and base, choose budget and steps, and return settings and plan."""
        with self.display.stage("prepare", "documents to tokens"):
            pretrained, revision = fixed_revision(self.request.model, self.request.revision, self.root)
            model = model_facts(pretrained, self.request.targets)
            # The reader needs the settings of the corpus, which do not depend on how many documents there are.
            corpus = adapt_settings(self.request, model, DocumentFacts(0, 0), revision=revision).data.corpus
            documents = count_documents(open_reader(corpus, self.root), pretrained_tokenizer(pretrained))
            settings = adapt_settings(self.request, model, documents, revision=revision)
            if self.folder.changed_documents(settings) is not False:
                prepare_all(settings, self.root)
        self.base(settings)
        with self.display.stage("plan", "the frozen model on val, and the speed of this machine"):
            return self._plan(model, documents, revision)

    def _plan(
        self, model: ModelFacts, documents: DocumentFacts, revision: str | None
    ) -> tuple[config.Settings, AdaptPlan]:
        dataset = open_target(adapt_settings(self.request, model, documents, revision=revision), self.root)

        def settings_with(**chosen: int) -> config.Settings:
            return adapt_settings(self.request, model, documents, revision=revision, n_units=dataset.n_units, **chosen)

        # The budget, from the losses of the frozen base.
        settings = settings_with()
        base_losses_U, parameters = self._base_on_val(settings, dataset)
        targets = float(np.mean(dataset.document_lengths("train"))) + 1.0
        known = KnownData(dataset.n_units, dataset.vocab_size, targets, base_losses_U)
        budgets = candidate_budgets(self.request, parameters)
        chosen = choose_budget(settings, known, budgets, base_losses_U)
        # Steps, time and memory, from the speed of this machine.
        settings = settings_with(budget=chosen.prediction.budget)
        throughput = measure_throughput(settings, self.root)
        steps = chosen_steps(self.request, settings, throughput)
        settings = settings_with(budget=chosen.prediction.budget, steps=steps)
        with claim_device(settings.compute) as device:
            memory_mib = peak_memory_mib(device)
        return settings, make_adapt_plan(
            settings,
            dataset,
            chosen,
            shortfall(settings, known, budgets, chosen),
            base_loss_bits=float(base_losses_U.mean()),
            cost=make_plan(settings, self.root, throughput),
            memory_mib=memory_mib,
            measured_on=throughput.source,
        )

    def _base_on_val(self, settings: config.Settings, dataset: TokenDataset) -> tuple[NDArray[np.float64], int]:
        """Return the anchor's losses on val units, bits per token, and the number of parameters of the adapters."""
        (spec,) = settings.grid.runs()
        with claim_device(settings.compute) as device:
            run = build_run(settings, spec, dataset, self.root, device)
            anchoring = run.loss.anchoring
            assert anchoring is not None
            documents_D, units = dataset.leading_units("val", settings.scoring.val_documents)
            documents = [dataset.document("val", int(i)) for i in documents_D]
            scores = score_documents(run.base(), documents, run.scoring_rule, device)
            anchor, vocab_size = DocumentMixture(anchoring.k0), dataset.vocab_size
            losses_D = anchor.losses_bits(scores.document_log_p_D(), scores.counts_D, vocab_size)
            return units.means(losses_D), run.network.space.size

    def prepare(self, settings: config.Settings) -> None:
        """Make the dataset, unless it is there; UserError if it was made of documents that have changed since."""
        changed = self.folder.changed_documents(settings)
        if changed:
            raise UserError(
                f"{self.request.documents}: the documents have changed since {self.root}/data was made of them; give "
                "another folder with --out"
            )
        if changed is False:
            self.display.skip("prepare")
            return
        with self.display.stage("prepare", "documents to tokens"):
            prepare_all(settings, self.root)

    def base(self, settings: config.Settings) -> None:
        """Import the model, unless it is there."""
        if self.folder.has_base(settings):
            self.display.skip("base")
            return
        with self.display.stage("base", "importing the model"):
            make_base(settings, root=self.root)

    # Training and certificate

    def run(self, settings: config.Settings, plan: AdaptPlan) -> Adapted:
        """Take the stages that are not done, write README.md, and return the card."""
        config_path, path = self.folder.config_path, self.folder.run_folder(settings)
        if independence_in_words(settings) == NOT_STATED:
            self.display.say(
                "note: why the model has not read these documents is not stated, and so it stands in the certificate; "
                'state it with --independence "..."'
            )
        if not self.folder.is_done("yardsticks", settings):
            with self._stage("yardsticks", "simple models and the frozen model", plan):
                make_yardsticks(settings, root=self.root)
            self.folder.done("yardsticks", settings)
        else:
            self.display.skip("yardsticks")
        self._train(settings, plan, path)
        if not self.folder.is_done("score", settings):
            with self._stage("score", "the message, and its losses", plan):
                score_run(path, config_path=config_path, root=self.root)
            self.folder.done("score", settings)
        else:
            self.display.skip("score")
        if not self.folder.is_done("bound", settings):
            with self._stage("bound", "every bound", plan):
                bound_run(path, config_path=config_path)
            self.folder.done("bound", settings)
        else:
            self.display.skip("bound")
        if not self.folder.is_done("verify", settings):
            with self._stage("verify", "everything again, from the certificate", plan):
                verdict = verify_claim(Claim.of(path, root=self.root), Options(config_path=config_path))
            self.folder.done("verify", settings, verified=verdict.verified, differs_in=verdict.wrong)
        else:
            self.display.skip("verify")
        return self._result(settings, plan, path)

    def _stage(self, name: str, what: str, plan: AdaptPlan) -> contextlib.AbstractContextManager[Any]:
        return self.display.stage(name, what, seconds=plan.seconds.get(name))

    def _train(self, settings: config.Settings, plan: AdaptPlan, path: Path) -> None:
        if self.folder.is_trained(settings):
            self.display.skip("train")
            return
        (spec,) = settings.grid.runs()
        steps = settings.training.steps
        with (
            self.display.stage("train", f"{steps:,} steps", steps=steps, seconds=plan.seconds["train"]) as advance,
            _saving_on_interrupt(steps) as look,
        ):

            def before_step(step: int) -> None:
                advance(step)
                if self.before_step is not None:
                    self.before_step(step)
                look(step)

            train_run(
                settings,
                spec,
                root=self.root,
                out=path,
                settings_file=self.folder.config_path,
                before_step=before_step,
            )

    def _result(self, settings: config.Settings, plan: AdaptPlan, path: Path) -> Adapted:
        """Write README.md and return what was made."""
        record = read_json(path / BOUNDS_NAME, missing="", fix=f"compute it again (sublora bound {path})")
        facts = self.folder.facts("verify")
        verdict = (
            "Verified on this machine: every loss and bound was computed again from the certificate."
            if facts["verified"]
            else f"NOT verified on this machine, differs in: {', '.join(facts['differs_in'])}."
        )
        run = path.relative_to(self.root).as_posix()
        page = readme(record, settings, self.root, run, verified=verdict)
        write_bytes(self.folder.readme_path, page.encode())
        text = card(record, settings, self.root, run, verified=verdict)
        return Adapted(self.root, plan, text, record, facts["verified"])


@contextlib.contextmanager
def _saving_on_interrupt(steps: int) -> Iterator[BeforeStep]:
    """Let the first Ctrl-C during the steps of a training save its state before it stops; yield what looks for it.

    The training stops that way on SIGUSR1. Before its first step, in its last one, and on a second Ctrl-C, the process
    stops at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: None
        return
    in_steps, pressed = False, False

    def receive(number: int, frame: Any) -> None:
        nonlocal pressed
        if not in_steps or pressed:
            raise KeyboardInterrupt
        pressed = True

    def look(step: int) -> None:
        nonlocal in_steps
        in_steps = step < steps - 1
        if pressed:
            signal.raise_signal(signal.SIGUSR1)

    previous = signal.signal(signal.SIGINT, receive)
    try:
        yield look
        if pressed:
            raise KeyboardInterrupt
    except Interrupted:
        if pressed:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
