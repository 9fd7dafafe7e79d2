"""The settings of the evidence: which arms are trained and compared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from detcurate.config.base import Settings, require_known

ARMS = (
    "curated",
    "random",
    "full",
    "random_boxes",
    "stratified_random",
    "most_boxes",
    "without_duplicates",
    "single_model_entropy",
)


class RetrainSettings(Settings):
    """Which arms are trained from scratch and compared, each with seeds ``SEED, SEED + 1, …``.

    docs/evidence.md says what each arm is. ``equal`` says what they have in common: ``iterations``, so that a smaller
    subset is seen more often, or ``epochs``, so that its training is shorter, and cheaper, in proportion.
    ``curve_fractions`` are shares of the pool, in (0, 1): random subsets for a learning curve, an arm each.
    """

    arms: tuple[str, ...] = ("curated", "random", "full")
    num_seeds: int = Field(2, ge=1)
    equal: Literal["iterations", "epochs"] = "iterations"
    curve_fractions: tuple[float, ...] = ()

    @field_validator("arms")
    @classmethod
    def _validate_arms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) != len(names):
            raise ValueError(f"arms must be one or more different names, got {list(names)}")
        return tuple(require_known("an arm", name, ARMS) for name in names)

    @model_validator(mode="after")
    def _validate_curve(self) -> RetrainSettings:
        fractions, is_closed = self.curve_fractions, "full" in self.arms
        if not all(0 < fraction < 1 for fraction in fractions):
            raise ValueError(f"curve_fractions must be in (0, 1), got {list(fractions)}; the arm full closes the curve")
        if len(self.curve_arms) < len(fractions):
            raise ValueError(f"curve_fractions must differ in their first six digits, got {list(fractions)}")
        if fractions and len(fractions) + is_closed < 3:
            raise ValueError(
                "curve_fractions must give a learning curve three sizes: three fractions, or two beside the arm full, "
                f"got {list(fractions)} with the arms {', '.join(self.arms)}"
            )
        return self

    @property
    def curve_arms(self) -> dict[str, float]:
        """The arms of the learning curve and their shares of the pool, the smallest first."""
        return {f"random_{100 * fraction:g}%": fraction for fraction in sorted(self.curve_fractions)}

    @property
    def all_arms(self) -> tuple[str, ...]:
        """The arms that are asked for, and those of the learning curve."""
        return (*self.arms, *self.curve_arms)
