"""Optimization, and the machine it runs on."""

from typing import Annotated, Literal

from pydantic import Field

from sublora.config.section import Extent, Mark, Section, SmoothingName
from sublora.system.validation import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt


class Optimization(Section):
    """AdamW with linear warm-up and cosine decay, and how often a training evaluates, reports and saves."""

    steps: PositiveInt
    """Steps of the optimizer."""
    tokens_per_step: PositiveInt
    """A multiple of model.context_length x micro_batch_sequences (for runs, also x compute.gpus_per_training)."""
    micro_batch_sequences: PositiveInt
    """Sequences of full length that go through the model at once; gradients accumulate over a step."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    final_learning_rate: NonNegativeFloat = 0.0
    """Learning rate at the last step, where the cosine ends."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps over which the learning rate rises from 0 to its peak."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of AdamW's second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW."""
    gradient_clip: PositiveFloat = 1.0
    """Largest norm of a step's gradient."""
    eval_interval_steps: PositiveInt = 100
    """Steps between evaluations on train and val; the best checkpoint is one of these."""
    eval_sequences: PositiveInt = 16
    """Sequences of train, and of val, in each periodic evaluation."""
    log_interval_steps: Annotated[PositiveInt, Mark(no_stage=True, claim="no_effect")] = 10
    """Steps between updates of the progress line."""
    save_interval_steps: Annotated[PositiveInt, Mark(no_stage=True, claim="no_effect")] = 20
    """Steps between saves of the resume state."""


class Training(Optimization):
    """Optimization of w (and gates)."""

    keep_initialization: bool = False
    """Also write the initial weights in full (500 MB for GPT-2 small)."""
    learning_rates: Annotated[dict[str, PositiveFloat] | None, Mark(null_counts=False)] = None
    """Peak learning rate of some of grid.trained by name, in place of learning_rate; final_learning_rate keeps its
    ratio to it. With the same rate, a subspace moves each parameter less than training it directly does."""

    def with_rate_of(self, trained: str) -> "Training":
        """Return the section for one run, with the learning rates of what it trains."""
        peak = (self.learning_rates or {}).get(trained, self.learning_rate)
        final = self.final_learning_rate * (peak / self.learning_rate)
        changes = {"learning_rate": peak, "final_learning_rate": final, "learning_rates": None}
        return self.model_copy(update=changes)


class RatePhaseSettings(Section):
    """The last phase of training, which trains for the message; only with message.quantizer 'entropy'."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Share of the steps, the last ones."""
    noise_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the phase in which uniform noise stands in for rounding and the step is learned; then w is rounded."""
    relative_step: Annotated[float, Field(ge=1e-6, le=1e3)] = 0.9
    """First quantization step, in standard deviations of w."""
    step_learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.02
    """Learning rate of the step's logarithm; decays like that of w."""
    rate_factor: PositiveFloat = 1.0
    """Factor on the price of a bit in the objective; at 1 the price is the slope of the bound."""
    smoothing: SmoothingName = "document(4)"
    """token(a) or document(k): in force until the phase starts and chooses one from scoring.smoothing.

    A random network is worse than guessing, where the document mixture has almost no gradient: begin with token(a) on a
    random base.
    """
    val_documents: PositiveInt = 64
    """Largest number of val documents by which the phase chooses."""
    choice_interval_steps: PositiveInt = 40
    """Steps between extra evaluations for the best checkpoint while w is rounded."""

    def first_step(self, steps: int) -> int:
        """Return the step at which the phase begins in a training of this many steps."""
        return round((1.0 - self.fraction) * steps)

    def first_rounded_step(self, steps: int) -> int:
        """Return the step at which rounding replaces noise."""
        return self.first_step(steps) + round(self.noise_fraction * (steps - self.first_step(steps)))


class Compute(Section):
    """Where and in which precision networks run."""

    device: Annotated[Literal["cuda", "cpu"], Mark("base", "train", "yardsticks")]
    """Where networks are trained and scored."""
    dtype: Annotated[Literal["float32", "bfloat16"], Mark("base", "train")] = "float32"
    """Type of frozen weights and activations in training; w, its projection and all scoring are float32."""
    compile: Annotated[bool, Mark("base", "train", "yardsticks")] = False
    """Whether layers and head run through torch.compile; needs a C compiler on the machines that train and score."""
    deterministic: Annotated[bool, Mark("base", "train", "yardsticks")] = True
    """Whether GPUs run only algorithms whose results do not vary between repetitions; a CPU always does."""
    gpus_per_training: PositiveInt = 1
    """GPUs per training, one process each; SLURM jobs request as many. With device cpu: the number of processes."""
    threads: Annotated[PositiveInt, Mark("train", "yardsticks")] = 1
    """CPU threads of a training or scoring process."""
    scoring_batch_tokens: Annotated[Extent, Mark(no_stage=True)] = 4096
    """Tokens that go through the model at once when documents are scored."""


class Tracking(Section):
    """Copies of every row of metrics.csv and gating_trace.csv while a training runs; no number depends on them."""

    tensorboard: bool = False
    """Whether event files are written into tensorboard/ in the run's folder; needs tensorboardX (sublora[tracking])."""
    wandb: Literal["offline", "online"] | None = None
    """Weights & Biases, which needs the package wandb. offline: files in wandb/ in the run's folder, to be sent later
    by `wandb sync`; online: sent at once, or written as offline where the server cannot be reached; null: neither."""
    wandb_project: Annotated[str, Field(min_length=1)] = "sublora"
    """Project on Weights & Biases."""
