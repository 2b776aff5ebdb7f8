"""Gaussian mixture on embeddings: scikit-learn's EM, an optional PCA, float64 log-densities."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssat_ray.selection.kmeans import check_rows
from ssat_ray.selection.scores import Array, Float64, logsumexp

COVARIANCES = ("diag", "tied", "full")
_BLOCK_ROWS = 1024
_TENSORS = ("weights", "means", "covariances", "pca_mean", "pca_components")


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A fitted mixture over p dimensions (p = d without PCA), components in order of their means.

    Attributes:
        weights: (k,) float64, sum 1.
        means: (k, p) float64.
        covariances: float64; 'diag' (k, p), 'tied' (p, p), 'full' (k, p, p).
        covariance_type: 'diag', 'tied' or 'full'.
        pca_mean: (d,) float64, or None.
        pca_components: (p, d) float64 orthonormal rows, or None.
        log_likelihood: mean over the fitted rows of log p, nats.
        num_iterations: EM iterations of the kept restart.
        converged: whether EM met its tolerance before `max_iter`.
    """

    weights: Float64
    means: Float64
    covariances: Float64
    covariance_type: str
    pca_mean: Float64 | None
    pca_components: Float64 | None
    log_likelihood: float
    num_iterations: int
    converged: bool

    def __post_init__(self) -> None:
        k, p = self.means.shape
        shapes = {"diag": (k, p), "tied": (p, p), "full": (k, p, p)}
        _check_covariance(self.covariance_type)
        if self.covariances.shape != shapes[self.covariance_type]:
            raise ValueError(
                f"{self.covariance_type} covariances of {k} components in {p} dimensions must be "
                f"{shapes[self.covariance_type]}, found {self.covariances.shape}"
            )
        if (self.pca_mean is None) != (self.pca_components is None):
            raise ValueError("pca_mean and pca_components must be given together or not at all")

    def log_joint(self, h: Array) -> Float64:
        """l_j(h) = log pi_j + log N(h; mu_j, Sigma_j): (N, d) -> (N, k) float64 nats.

        The log-density is that of the p PCA coordinates where a PCA was fitted. Blocks are padded
        to one shape, since a BLAS may sum a short block in another order. Raises ValueError if
        the width of h is not d.
        """
        h = np.asarray(h)
        width = self.means.shape[1] if self.pca_components is None else self.pca_components.shape[1]
        if h.ndim != 2 or h.shape[1] != width:
            raise ValueError(f"the mixture takes (N, {width}) embeddings, found {h.shape}")
        factors, constants = self.whitening()
        out = np.empty((len(h), len(self.weights)))
        for start in range(0, len(h), _BLOCK_ROWS):
            block = h[start : start + _BLOCK_ROWS]
            x = np.zeros((_BLOCK_ROWS, width))
            x[: len(block)] = block
            if self.pca_mean is not None and self.pca_components is not None:
                x = (x - self.pca_mean) @ self.pca_components.T
            for j, (mean, factor) in enumerate(zip(self.means, factors, strict=True)):
                y = (x - mean) * factor if factor.ndim == 1 else (x - mean) @ factor
                squared = np.square(y).sum(axis=1)[: len(block)]
                out[start : start + len(block), j] = constants[j] - 0.5 * squared
        return out

    def whitening(self) -> tuple[Float64, Float64]:
        """What a density is made of: l_j(x) = constants_j - |(x - mu_j) W_j|^2 / 2.

        Returns factors W, 'diag' (k, p) to multiply by and otherwise (k, p, p), and constants (k,).
        """
        k, p = self.means.shape
        if self.covariance_type == "diag":
            factors = 1 / np.sqrt(self.covariances)
            log_dets = 0.5 * np.log(self.covariances).sum(axis=1)
        else:
            lower = np.linalg.cholesky(self.covariances)
            factors = np.swapaxes(np.linalg.solve(lower, np.eye(p)), -1, -2)
            factors = np.broadcast_to(factors, (k, p, p))
            log_dets = np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(axis=-1)
        with np.errstate(divide="ignore"):
            return factors, np.log(self.weights) - log_dets - 0.5 * p * np.log(2 * np.pi)

    def to_tensors(self) -> dict[str, Float64]:
        """Contiguous float64 arrays by name, for safetensors; absent PCA arrays are left out."""
        named = {name: getattr(self, name) for name in _TENSORS}
        return {n: np.ascontiguousarray(a) for n, a in named.items() if a is not None}

    def metadata(self) -> dict[str, Any]:
        """What `to_tensors` leaves out, as values that JSON holds."""
        return {
            "covariance_type": self.covariance_type,
            "log_likelihood": self.log_likelihood,
            "num_iterations": self.num_iterations,
            "converged": self.converged,
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Array], metadata: Mapping[str, Any]
    ) -> "GaussianMixture":
        """Inverse of `to_tensors` and `metadata`; ValueError names what is missing."""
        fields = ("covariance_type", "log_likelihood", "num_iterations", "converged")
        missing = [n for n in _TENSORS[:3] if n not in tensors]
        missing += [n for n in fields if n not in metadata]
        if missing:
            raise ValueError(f"a stored mixture lacks {', '.join(missing)}; fit it again")
        arrays = {n: np.asarray(tensors[n], np.float64) if n in tensors else None for n in _TENSORS}
        return cls(**arrays, **{n: metadata[n] for n in fields})  # type: ignore[arg-type]


def fit_gmm(
    h: Array,
    k: int,
    *,
    covariance: str = "diag",
    pca_dims: int | None = None,
    seed: int = 0,
    restarts: int = 3,
    max_iter: int = 200,
    reg_covar: float = 1e-6,
) -> GaussianMixture:
    """EM by scikit-learn in float64 on all rows; the best of `restarts` k-means starts.

    Args:
        h: (N, d) embeddings, finite.
        k: number of components, 2 <= k <= N.
        covariance: 'diag', 'tied' or 'full'.
        pca_dims: project to this many principal components first (not whitened), or None.
        seed: same result for the same seed, rows and number of threads.
        restarts: EM runs; the highest likelihood bound is kept.
        max_iter: most EM iterations a run; `converged` tells whether they sufficed.
        reg_covar: added to the diagonal of each covariance, in squared units of h.

    Raises:
        ValueError: `cluster.k`, `cluster.covariance` or `cluster.pca_dims` out of range, rows that
            are not finite, or covariances that collapse (scikit-learn: raise reg_covar).

    Source: Dempster et al. 1977; scikit-learn's GaussianMixture.
    """
    check_rows(h, k)
    _check_covariance(covariance)
    if pca_dims is not None and not 1 <= pca_dims <= min(h.shape):
        raise ValueError(
            f"cluster.pca_dims must be between 1 and min(N, d) = {min(h.shape)}, found {pca_dims}"
        )
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as ScikitMixture

    x = np.asarray(h, np.float64)
    pca = None
    if pca_dims is not None:
        pca = PCA(pca_dims, random_state=seed).fit(x)
        x = pca.transform(x)
    mixture = ScikitMixture(
        k,
        covariance_type=covariance,
        random_state=seed,
        n_init=restarts,
        max_iter=max_iter,
        reg_covar=reg_covar,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported by `converged`
        mixture.fit(x)
    order = np.lexsort(mixture.means_.T[::-1])
    fitted = GaussianMixture(
        weights=mixture.weights_[order],
        means=mixture.means_[order],
        covariances=mixture.covariances_ if covariance == "tied" else mixture.covariances_[order],
        covariance_type=covariance,
        pca_mean=None if pca is None else pca.mean_,
        pca_components=None if pca is None else pca.components_,
        log_likelihood=np.nan,
        num_iterations=int(mixture.n_iter_),
        converged=bool(mixture.converged_),
    )
    return replace(fitted, log_likelihood=float(logsumexp(fitted.log_joint(h)).mean()))


def _check_covariance(covariance: str) -> None:
    if covariance not in COVARIANCES:
        raise ValueError(
            f"cluster.covariance must be one of {', '.join(COVARIANCES)}, found {covariance!r}"
        )
