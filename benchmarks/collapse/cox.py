"""Hazard ratios of few runs: Cox's proportional hazards with Firth's penalty.

With a handful of runs all of one side often collapse and none of the other, and then Cox's estimate is infinite.
Firth's penalty, half the log-determinant of the information, keeps it finite and takes most of its bias; intervals
follow the profile of the penalised likelihood, because the one from the curvature is useless there (Heinze and Schemper
2001, "A solution to the problem of monotone likelihood in Cox regression", Biometrics 57). Ties are Breslow's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.collapse.estimates import LEVEL, Interval
from search_gym.errors import OptionError
from search_gym.plugins import require

Array = npt.NDArray[np.float64]
_FAR = 12.0
"""Log hazard ratios beyond this, 160,000-fold, are no longer looked for."""


@dataclass(frozen=True)
class Coefficient:
    """The log hazard ratio of a covariate, and the p-value of the penalised likelihood ratio test that it is 0."""

    log_ratio: Interval
    p_value: float


class Cox:
    """The model of ``times`` (n,), ``events`` (n,; False: censored then) and ``covariates`` (n, p).

    Raises:
        OptionError: no event, or covariates that depend on each other.
    """

    def __init__(self, times: Array, events: npt.NDArray[np.bool_], covariates: Array, *, penalised: bool = True):
        self.penalised = penalised
        if not np.any(events):
            raise OptionError("expected an event or more, got none; do: leave out hazard ratios")
        centred = covariates - covariates.mean(0)
        if np.linalg.matrix_rank(centred) < covariates.shape[1]:
            raise OptionError(
                f"expected {covariates.shape[1]} covariates that do not determine each other, got a matrix of lower "
                "rank; do: leave some out, or wait for more runs"
            )
        self._x = centred
        moments = np.unique(times[events])
        self._deaths = np.array([np.sum(events & (times == t)) for t in moments], dtype=np.float64)
        self._sums = np.array([centred[events & (times == t)].sum(0) for t in moments])
        self._at_risk = (times[None, :] >= moments[:, None]).astype(np.float64)  # (moments, n)
        self._start = np.zeros(centred.shape[1])

    def log_likelihood(self, beta: Array) -> float:
        """The partial log-likelihood at ``beta`` (p,), with the penalty if there is one."""
        eta = self._x @ beta
        shift = eta.max()
        weights = self._at_risk * np.exp(eta - shift)
        totals = weights.sum(1)
        value = float((self._sums @ beta - self._deaths * (np.log(totals) + shift)).sum())
        if not self.penalised:
            return value
        means = weights @ self._x / totals[:, None]
        second = np.einsum("mn,ni,nj->mij", weights, self._x, self._x) / totals[:, None, None]
        information = np.einsum("m,mij->ij", self._deaths, second - means[:, :, None] * means[:, None, :])
        sign, log_determinant = np.linalg.slogdet(information)
        return value + 0.5 * log_determinant if sign > 0 else -np.inf

    def fit(self) -> Array:
        """The coefficients (p,) of the highest likelihood."""
        return self._maximum(None, 0.0)[0]

    def coefficient(self, index: int) -> Coefficient:
        """The estimate for one covariate with its profile interval."""
        optimize, chi2 = require("scipy.optimize", extra="study"), require("scipy.stats", extra="study").chi2
        beta, top = self._maximum(None, 0.0)
        drop = chi2.ppf(LEVEL, 1) / 2

        def excess(value: float) -> float:
            return top - self._maximum(index, value)[1] - drop

        bounds: list[float | None] = []
        for side in (-1, 1):
            far = float(np.clip(beta[index] + side * 0.5, -_FAR, _FAR))
            while excess(far) < 0 and abs(far) < _FAR:
                far = float(np.clip(beta[index] + 2 * (far - beta[index]), -_FAR, _FAR))
            bounds.append(
                float(optimize.brentq(excess, beta[index], far, xtol=1e-4)) if excess(far) > 0 else None
            )  # fmt: skip
        statistic = 2 * (top - self._maximum(index, 0.0)[1])
        return Coefficient(Interval(float(beta[index]), *bounds), float(chi2.sf(max(0.0, statistic), 1)))

    def _maximum(self, fixed: int | None, value: float) -> tuple[Array, float]:
        """The best coefficients and their log-likelihood, one of them held at ``value``."""
        optimize = require("scipy.optimize", extra="study")
        p = self._x.shape[1]
        free = [i for i in range(p) if i != fixed]
        beta = np.zeros(p)
        if fixed is not None:
            beta[fixed] = value
        if not free:
            return beta, self.log_likelihood(beta)

        def loss(part: Array) -> float:
            whole = beta.copy()
            whole[free] = part
            found = self.log_likelihood(whole)
            return -found if np.isfinite(found) else 1e10

        found = optimize.minimize(loss, self._start[free], method="BFGS", options={"gtol": 1e-6})
        beta[free] = found.x
        self._start = beta.copy()  # the next question is about a point near by
        return beta, -float(found.fun)


def hazard_ratio(times: Array, events: npt.NDArray[np.bool_], is_one: npt.NDArray[np.bool_]) -> Coefficient | None:
    """The log hazard ratio of the runs that ``is_one`` says against the others; None when it cannot be asked: no event,
    or no run on one side."""
    if not np.any(events) or np.all(is_one) or not np.any(is_one):
        return None
    return Cox(times, events, is_one.astype(np.float64)[:, None]).coefficient(0)
