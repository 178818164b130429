"""Settings of an experiment: strict, frozen, and complete (every key must be given).

A settings file lies in a folder `config/`; the paths it implies (data/..., results/...) are relative to the
folder above. Keys are grouped by the stage they influence, so that the workflow can rerun a stage exactly
when one of its own keys changes.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sublora.config_errors import describe
from sublora.errors import UserError

FIXED_PREFIX = "fixed-"


class Section(BaseModel):
    """Base of all groups of settings: unknown keys refused, values immutable, types not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class RunSpec(Section):
    """One training: a point of the grid."""

    budget: PositiveInt
    """d, the dimension of the subspace."""
    allocation: str
    """uniform, fixed-<share of B> or learned."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of base weights, LoRA init and batch order."""

    @field_validator("allocation")
    @classmethod
    def _known_allocation(cls, value: str) -> str:
        parse_allocation(value)
        return value

    @property
    def name(self) -> str:
        return f"d{self.budget}_{self.allocation}_seed{self.seed}"

    @property
    def mode(self) -> str:
        return parse_allocation(self.allocation)[0]

    @property
    def ratio(self) -> float | None:
        """Share of B for a fixed allocation, None otherwise."""
        return parse_allocation(self.allocation)[1]


def parse_allocation(text: str) -> tuple[str, float | None]:
    """(mode, share of B or None) of an allocation's name; ValueError if there is no such allocation."""
    if text in ("uniform", "learned"):
        return text, None
    try:
        ratio = float(text.removeprefix(FIXED_PREFIX)) if text.startswith(FIXED_PREFIX) else math.nan
    except ValueError:
        ratio = math.nan
    if not 0.0 < ratio < 1.0:
        raise ValueError(
            f"allocation '{text}' is none of uniform, learned, fixed-<ratio> with 0 < ratio < 1 (for example fixed-0.2)"
        )
    return "fixed", ratio


class Grid(Section):
    """The sweep: every combination of budget, allocation and seed is one run."""

    budgets: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Subspace dimensions d."""
    allocations: Annotated[tuple[str, ...], Field(min_length=1)]
    """Any of uniform, fixed-<share of B>, learned."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Seeds of base weights, LoRA init and batch order."""

    @field_validator("allocations")
    @classmethod
    def _known_allocations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            parse_allocation(item)
        return value

    @model_validator(mode="after")
    def _distinct(self) -> "Grid":
        for name in ("budgets", "allocations", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds a value twice: {list(values)}")
        return self

    def runs(self) -> tuple[RunSpec, ...]:
        """All runs, seeds fastest. Their number is what the arm's index costs in the message."""
        return tuple(
            RunSpec(budget=budget, allocation=allocation, seed=seed)
            for budget in self.budgets
            for allocation in self.allocations
            for seed in self.seeds
        )


class HuggingFaceCorpus(Section):
    """A dataset of the Hugging Face hub, read from its parquet files."""

    kind: Literal["huggingface"]
    dataset: str
    """Identifier on the hub, or a folder of parquet files (relative to the folder above config/, or absolute)."""
    revision: str
    """Branch or commit; refs/convert/parquet is the hub's own parquet conversion."""
    split: str
    text_field: str


class FolderCorpus(Section):
    """A folder of .txt files (a document each) and .jsonl files (a document a line)."""

    kind: Literal["folder"]
    path: str
    """Relative to the folder above config/, or absolute."""
    text_field: str
    """Key of the text in a .jsonl line."""


class DocstringCorpus(Section):
    """Docstrings of the standard library and of installed packages, read without importing them.

    Folders named test or tests are left out: some installers strip them.
    """

    kind: Literal["docstrings"]
    packages: Annotated[tuple[str, ...], Field(min_length=1)]
    """Import names; 'stdlib' is the standard library."""


class FunctionCorpus(Section):
    """Functions and methods of the standard library and of installed packages, docstrings cut out.

    Found as the files of a docstring corpus are. What a function contains is part of it.
    """

    kind: Literal["functions"]
    packages: Annotated[tuple[str, ...], Field(min_length=1)]
    """Import names; 'stdlib' is the standard library."""


class MarkovCorpus(Section):
    """Independent documents of a Markov chain whose entropy rate is known: a source to test bounds against.

    A symbol is one ASCII byte, so the tokenizer must be 'bytes'. No document may occur twice, or deduplication
    would make the documents dependent: lengths too short for that are refused when the corpus is read.
    """

    kind: Literal["markov"]
    symbols: Annotated[int, Field(ge=2, le=94)]
    """Size of the alphabet."""
    concentration: Annotated[float, Field(ge=0.05, allow_inf_nan=False)]
    """Each row of the transition matrix is drawn from a symmetric Dirichlet distribution with this parameter."""
    documents: PositiveInt
    min_length: PositiveInt
    """In symbols; lengths are uniform on min_length ... max_length."""
    max_length: PositiveInt
    seed: Annotated[int, Field(ge=0)]
    """Seed of the transition matrix and of the documents."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "MarkovCorpus":
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} exceeds max_length {self.max_length}")
        return self


class Data(Section):
    """Where documents come from and how they are split and tokenized."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Files lie in data/{name}/."""
    corpus: Annotated[
        HuggingFaceCorpus | FolderCorpus | DocstringCorpus | FunctionCorpus | MarkovCorpus, Field(discriminator="kind")
    ]
    tokenizer: Literal["gpt2", "bytes"]
    """gpt2: byte-pair encoding, 50,257 tokens; bytes: 256 values and the end-of-text token."""
    min_characters: Annotated[int, Field(ge=1)]
    """Shorter documents are left out."""
    min_tokens: Annotated[int, Field(ge=1)]
    """Documents of fewer tokens, end-of-text not counted, are left out: the population has none."""
    val_documents: PositiveInt
    """Documents for every choice made after looking at losses."""
    test_documents: PositiveInt
    """Documents that are only ever reported."""
    shuffle_seed: Annotated[int, Field(ge=0)]
    workers: PositiveInt
    """Processes that tokenize; does not change the result."""

    @model_validator(mode="after")
    def _markov_symbols_are_tokens(self) -> "Data":
        if isinstance(self.corpus, MarkovCorpus):
            if self.tokenizer != "bytes":
                raise ValueError(f"a markov corpus needs tokenizer 'bytes', found '{self.tokenizer}'")
            for key in ("min_characters", "min_tokens"):  # leaving out documents would change the distribution
                if getattr(self, key) > self.corpus.min_length:
                    raise ValueError(f"{key} {getattr(self, key)} exceeds corpus.min_length {self.corpus.min_length}")
        return self


class Model(Section):
    """GPT-2 with frozen random weights."""

    n_layer: PositiveInt
    n_head: PositiveInt
    n_embd: PositiveInt
    context_length: PositiveInt
    init_std: PositiveFloat
    """Standard deviation of the frozen weights; 0.02 in GPT-2."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Model":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self


class Lora(Section):
    """Low-rank adapters on the frozen weights: W x + (alpha / rank) B A x."""

    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    targets: Annotated[tuple[Literal["query", "value", "head"], ...], Field(min_length=1)]
    init: Literal["zero_b", "both_random"]
    """zero_b: A random, B zero, so at first only B learns; both_random: both random, and their product is subtracted
    from the frozen weight. Either way training starts from the base model."""


class Subspace(Section):
    """The random projection from w to the LoRA parameters."""

    projection: Literal["kronecker_qr"]
    projection_seed: Annotated[int, Field(ge=0)]


class Gating(Section):
    """The learned allocation: soft masks that narrow, then hard splits."""

    sharing: Literal["shared", "per_layer"]
    """shared: every gate splits all of w; per_layer: its layer's (or the head's) own part of w, d / groups of it."""
    learning_rate: PositiveFloat
    mask_width_start: PositiveFloat
    """Temperature tau of the mask at the first step, as a share of the coordinates that a gate splits."""
    mask_width_end: PositiveFloat
    """Temperature tau, in coordinates, at the end of the soft phase."""
    soft_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the steps with soft masks; the rest trains with the hard split."""
    trace_interval_steps: PositiveInt
    """Steps between rows of gating_trace.csv, over which a row's gradient_snr is taken."""


class Training(Section):
    """Optimization of w (and gates): AdamW, linear warm-up, cosine decay."""

    steps: PositiveInt
    tokens_per_step: PositiveInt
    """A multiple of model.context_length."""
    micro_batch_sequences: PositiveInt
    """Sequences that go through the model at once; gradients accumulate over a step."""
    learning_rate: PositiveFloat
    final_learning_rate: NonNegativeFloat
    warmup_fraction: Fraction
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]]
    epsilon: PositiveFloat
    weight_decay: NonNegativeFloat
    gradient_clip: PositiveFloat
    """Largest norm of a step's gradient."""
    eval_interval_steps: PositiveInt
    eval_sequences: PositiveInt
    """Sequences of train and of val for each periodic evaluation."""
    log_interval_steps: PositiveInt
    save_interval_steps: PositiveInt
    """Steps between saves of the resume state."""
    keep_initialization: bool
    """Also write the initial weights in full (500 MB for GPT-2 small)."""


class CodePhase(Section):
    """The last phase of training, which trains for the message; only with message.quantizer 'entropy'."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the steps, the last ones."""
    noise_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Share of the phase that stands uniform noise in for rounding and learns the step; then w is rounded."""
    relative_step: PositiveFloat
    """First quantization step, in standard deviations of w."""
    step_learning_rate: PositiveFloat
    """Of the step's logarithm; decays like the learning rate of w."""
    rate_factor: PositiveFloat
    """Factor on the price of a bit in the objective; at 1 it is the slope of the bound."""
    smoothing: Probability
    """a in training until the phase starts and chooses one from scoring.smoothing."""
    val_documents: PositiveInt
    """Val documents, at most, by which the phase chooses."""
    val_windows: PositiveInt
    """Windows of each of them."""
    choice_interval_steps: PositiveInt
    """Steps between looks for the best checkpoint while w is rounded, beside the periodic evaluations."""


class Compute(Section):
    """Where and in which precision networks run."""

    device: Literal["cuda", "cpu"]
    dtype: Literal["float32", "bfloat16"]
    """Type of the frozen weights and activations; w and its projection stay in float32."""
    compile: bool
    """Whether layers and head run through torch.compile; needs a C compiler on the machine that trains and scores."""
    deterministic: bool
    """Whether GPUs run only algorithms whose results do not vary from run to run; a CPU always does."""
    gpus_per_training: PositiveInt
    """GPUs of one training, a process each; SLURM jobs ask for as many. With device cpu: its number of processes."""
    threads: PositiveInt
    """CPU threads of a training or scoring process."""
    scoring_batch_tokens: PositiveInt
    """Tokens that go through the model at once when documents are scored."""


class Message(Section):
    """How a trained w becomes a message."""

    quantizer: Literal["plain", "entropy"]
    """plain: uniform levels, 16-bit codebook, transmitted counts; entropy: a step and an adaptive code, trained for."""
    levels: Annotated[int, Field(ge=2, le=255)]
    """Levels of the plain quantizer."""
    extra_bits: NonNegativeFloat
    """Bits owed for choices made by hand on this data (log2 of the number of alternatives tried)."""


class Scoring(Section):
    """Per-document losses of the decoded model."""

    documents: PositiveInt
    """m: training documents drawn with replacement after the message is frozen."""
    sliding_window: PositiveInt
    """Tokens by which the window moves in documents longer than the context."""
    smoothing: Annotated[tuple[Probability, ...], Field(min_length=1)]
    """Grid of a in p_a = (1 - a) p + a / V."""
    val_documents: PositiveInt
    """Val documents on which the smoothing is chosen."""
    test_documents: PositiveInt
    """Test documents whose loss is reported."""


class Bound(Section):
    """The inequality and its confidence."""

    delta: Probability
    """The bounds hold with probability 1 - delta."""
    delta_sample: Probability
    """Part of delta spent on scoring m of the n documents."""

    @model_validator(mode="after")
    def _sample_below_total(self) -> "Bound":
        if self.delta_sample >= self.delta:
            raise ValueError(f"delta_sample {self.delta_sample} must be smaller than delta {self.delta}")
        return self


class Settings(Section):
    """A whole settings file."""

    grid: Grid
    data: Data
    model: Model
    lora: Lora
    subspace: Subspace
    gating: Gating
    training: Training
    code_phase: CodePhase
    compute: Compute
    message: Message
    scoring: Scoring
    bound: Bound

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        context = self.model.context_length
        found = []
        together = context * self.training.micro_batch_sequences * self.compute.gpus_per_training
        if self.training.tokens_per_step % together:
            found.append(
                f"training.tokens_per_step {self.training.tokens_per_step} is not a multiple of model.context_length x "
                f"training.micro_batch_sequences x compute.gpus_per_training = {together}"
            )
        if self.scoring.sliding_window > context:
            found.append(f"scoring.sliding_window {self.scoring.sliding_window} exceeds model.context_length {context}")
        for key in ("val_documents", "test_documents"):
            have, wanted = getattr(self.data, key), getattr(self.scoring, key)
            if wanted > have:
                found.append(f"scoring.{key} {wanted} exceeds data.{key} {have}")
        largest, parameters = max(self.grid.budgets), self.lora_parameters_without_head_rows()
        if "head" not in self.lora.targets and largest > parameters:
            found.append(f"grid.budgets holds {largest}, more than the {parameters} LoRA parameters")
        if found:
            raise ValueError("; ".join(found))
        return self

    def lora_parameters_without_head_rows(self) -> int:
        """LoRA parameters, leaving out the head's B, whose size depends on the vocabulary of the data."""
        r, width = self.lora.rank, self.model.n_embd
        attention = sum(target in self.lora.targets for target in ("query", "value"))
        return 2 * r * width * attention * self.model.n_layer + r * width * ("head" in self.lora.targets)


STAGE_SECTIONS = {
    "data": ("data",),
    "train": ("data", "model", "lora", "subspace", "gating", "training", "compute"),
    "score": ("message", "scoring", "bound"),
    "bound": ("message", "scoring", "bound"),
}
"""Which sections a stage reads itself; what earlier stages read reaches it through their files."""

STAGES_THAT_PAY_FOR_THE_SWEEP = ("score", "bound")
"""Of the grid these read only the number of runs: the arm's index is part of the message."""

WITHOUT_EFFECT = {
    "data": ("workers",),
    "training": ("log_interval_steps", "save_interval_steps"),
    "compute": ("scoring_batch_tokens",),
}
"""Keys that change how fast or how visibly a stage runs, never its numbers."""


TRAINING_FOR_THE_CODE = {
    "code_phase": None,
    "scoring": ("documents", "sliding_window", "smoothing"),
    "bound": ("delta", "delta_sample"),
}
"""What training reads beyond its own sections when its objective is the bound (None: the whole section)."""


def stage_settings(settings: Settings, stage: str) -> dict[str, Any]:
    """The settings whose change must rerun `stage`, as plain JSON values."""
    values = settings.model_dump(mode="json", include=set(STAGE_SECTIONS[stage]))
    if stage == "train":
        values["message"] = {"quantizer": settings.message.quantizer}
        if settings.message.quantizer == "entropy":
            for section, keys in TRAINING_FOR_THE_CODE.items():
                whole = getattr(settings, section).model_dump(mode="json")
                values[section] = {key: whole[key] for key in keys or whole}
    for section, keys in WITHOUT_EFFECT.items():
        for key in keys:
            values.get(section, {}).pop(key, None)
    if stage in STAGES_THAT_PAY_FOR_THE_SWEEP:
        values["sweep_size"] = len(settings.grid.runs())
    return values


def digest(value: object) -> str:
    """sha256, in hexadecimal, of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load_settings(path: Path) -> Settings:
    """Read and check a settings file; UserError names the file, the key and the mend."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file; give one with --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse_settings(values, source=str(path))


def parse_run(budget: int, allocation: str, seed: int) -> RunSpec:
    """A grid point from the command line; UserError if it is none."""
    try:
        return RunSpec(budget=budget, allocation=allocation, seed=seed)
    except ValidationError as error:
        raise UserError(describe(error, RunSpec.model_json_schema())) from None


def parse_settings(values: object, source: str) -> Settings:
    """Check settings given as plain values; `source` names them in errors."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected a mapping with the keys {', '.join(Settings.model_fields)}")
    try:
        return Settings.model_validate(_with_tuples(values))
    except ValidationError as error:
        raise UserError(f"{source}: {describe(error, Settings.model_json_schema())}") from None


def _with_tuples(value: Any) -> Any:
    """YAML lists as tuples, which is what frozen settings hold."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def root_of(config_path: Path) -> Path:
    """The folder that data/ and results/ of a settings file are relative to: the one above config/."""
    return Path(config_path).resolve().parent.parent
