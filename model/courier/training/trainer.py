"""The training loop: the steps of any objective, resumable at each, with a curve of losses and collapse figures."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.courier.config import CourierConfig
from model.courier.data.batches import Batch
from model.courier.data.loader import Loaded, Source, loaded
from model.courier.losses.objective import Objective
from model.courier.progress import TrainingLog
from model.courier.training.checkpoint import Checkpoint, State
from model.courier.training.collapse_metrics import step_figures
from model.courier.training.gradients import Gradients, random_state, set_random_state
from model.courier.training.process_group import ProcessGroup


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves: the modules, the curve's lines, the seconds and the distinct images it took.

    waited: seconds that the model waited for the loader.
    """

    objective: Objective
    curve: list[dict[str, float]]
    seconds: float
    images: int
    waited: float


class Trainer:
    """A run under way: all that a checkpoint must hold."""

    def __init__(self, objective: Objective, config: CourierConfig, group: ProcessGroup) -> None:
        self.objective = objective
        self.config = config
        self.group = group
        self.step = 0
        self.steps = config.steps if objective.terms else 0
        self.trainable: list[Tensor] = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        nothing = [torch.zeros(0)]  # which an optimizer refuses to be without
        self.optimizer = torch.optim.AdamW(self.trainable or nothing, weight_decay=config.weight_decay)
        self.gradients = Gradients(objective, group, chunk_images=config.chunk_images, precision=config.precision)
        self.log = TrainingLog(self.steps, objective.terms, silent=group.rank != 0)

    def run(self, batch_of: Callable[[int], Batch], source: Source, checkpoint: Checkpoint | None = None) -> Trained:
        """Go on from where the checkpoint is, to the end. batch_of: the rows of a step that this process sees."""
        if checkpoint and (state := checkpoint.read()):
            self.restore(state)
        self.objective.train()
        device = self.group.device
        with self.log.bar, loaded(range(self.step, self.steps), batch_of, source, device) as parts:
            for part in parts:
                self.take_step(part, source)
                if checkpoint and self.step % checkpoint.every == 0:
                    self._write(checkpoint)
        self.objective.eval()
        return Trained(self.objective, self.log.lines, self.log.seconds, self.log.images, self.log.waited)

    def take_step(self, part: Loaded, source: Source) -> None:
        """Move the weights by one step, and say so in the curve."""
        set_learning_rate(self.optimizer, self.config, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.gradients.of(part.raw, source.prepare, part.batch)
        self.gradients.scaler.step(self.optimizer)
        self.gradients.scaler.update()
        self.step += 1
        figures = step_figures(self.objective, part.batch) if self.log.ends_line(self.step) else {}
        self.log.add(losses, self.gradients.weights, part.images, part.waited, figures)

    def state(self) -> State:
        """All of it; every process must ask at the same step, and gets the random states of all."""
        drawn = self.group.collect(random_state(self.group.device))
        tensors = {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        tensors |= {f"random.{rank}": state for rank, state in enumerate(drawn)}
        slots = self.optimizer.state_dict()["state"]
        tensors |= {f"optimizer.{n}.{name}": tensor for n, slot in slots.items() for name, tensor in slot.items()}
        facts: dict[str, Any] = {"step": self.step, "scaler": self.gradients.scaler.state_dict()}
        facts["log"], tensors["log"] = self.log.state()
        return State(tensors, facts)

    def restore(self, state: State) -> None:
        """Stand where `state` was taken. The learning rate is a function of the step, so no schedule is saved."""
        device = self.group.device
        self.step = int(state.facts["step"])
        self.objective.load_state_dict(_under("objective.", state.tensors))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer.", state.tensors).items():
            number, _, slot = name.partition(".")
            slots.setdefault(int(number), {})[slot] = _laid_out_like(self.trainable[int(number)], tensor)
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.gradients.scaler.load_state_dict(state.facts["scaler"])
        self.log.restore(state.facts["log"], state.tensors["log"].to(device))
        set_random_state(state.tensors[f"random.{self.group.rank}"], device)

    def _write(self, checkpoint: Checkpoint) -> None:
        state = self.state()
        if self.group.rank == 0:
            checkpoint.write(state)


def learning_rate_at(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate: linear over the warm-up, then half a cosine down to 0 after the last step.

    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5, without restarts.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, config: CourierConfig, step: int) -> None:
    """Give the optimizer the rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * learning_rate_at(step, config.steps, config.warmup_steps)


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor with the parameter's strides: other ones take other kernels, whose last bits may differ."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
