"""nearest_centroids against a loop, against FAISS, and the Triton twin against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megavlm.kernels.nearest_centroids import nearest_centroids


def case(n: int, k: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng), torch.randn(k, d, generator=rng)


def by_loop(points: torch.Tensor, centroids: torch.Tensor, wanted: int) -> list[list[int]]:
    products = (points.double() @ centroids.double().T).tolist()
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:wanted] for row in products]


@pytest.mark.parametrize(("n", "k", "d", "wanted"), [(1, 1, 1, 1), (7, 5, 3, 1), (40, 33, 17, 5), (1030, 8, 4, 8)])
def test_equals_a_loop(n: int, k: int, d: int, wanted: int) -> None:
    points, centroids = case(n, k, d)
    indices, products = nearest_centroids(points, centroids, wanted)
    assert indices.tolist() == by_loop(points, centroids, wanted)
    torch.testing.assert_close(products, (points @ centroids.T).gather(1, indices))


def test_equals_faiss_on_unit_vectors() -> None:
    faiss = pytest.importorskip("faiss")  # a machine for the Triton twin need not have it
    points, centroids = (torch.nn.functional.normalize(each) for each in case(300, 50, 64))
    index = faiss.IndexFlatIP(64)
    index.add(centroids.numpy())
    cosines, wanted = index.search(points.numpy(), 4)
    indices, products = nearest_centroids(points, centroids, 4)
    assert np.array_equal(indices.numpy(), wanted)
    np.testing.assert_allclose(products.numpy(), cosines, atol=1e-6)


def test_finds_the_euclidean_nearest_with_one_more_coordinate() -> None:
    points, centroids = case(200, 30, 8)
    lifted = torch.cat([centroids, -centroids.square().sum(1, keepdim=True) / 2], dim=1)
    indices, _ = nearest_centroids(torch.cat([points, torch.ones(200, 1)], dim=1), lifted)
    assert torch.equal(indices[:, 0], torch.cdist(points, centroids).argmin(dim=1))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_equal_products_go_to_the_lower_index(triton_device: str, backend: str) -> None:
    centroids = torch.eye(4, device=triton_device).repeat(40, 1)  # centroid i equals centroids i + 4, i + 8, ...
    points = torch.eye(4, device=triton_device)
    indices, products = nearest_centroids(points, centroids, 3, backend=backend)
    assert indices.tolist() == [[i, i + 4, i + 8] for i in range(4)]
    assert torch.equal(products, torch.ones(4, 3, device=triton_device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k", "d", "wanted"), [(0, 3, 4, 1), (5, 3, 7, 1), (70, 130, 40, 1), (66, 150, 33, 6)])
def test_triton_twin_equals_the_reference(
    triton_device: str, n: int, k: int, d: int, wanted: int, dtype: torch.dtype
) -> None:
    points, centroids = (each.to(triton_device, dtype) for each in case(n, k, d))
    (expected, values), (indices, products) = (
        nearest_centroids(points, centroids, wanted, backend=backend) for backend in ("torch", "triton")
    )
    torch.testing.assert_close(products, values, atol=1e-4, rtol=1e-4)
    assert torch.equal(indices, expected)


@pytest.mark.parametrize("wanted", [0, 6, 33])
def test_wanted_outside_what_there_is_is_refused(wanted: int) -> None:
    with pytest.raises(ValueError, match="centroids: give 1 to 5"):
        nearest_centroids(*case(3, 5, 2), wanted)


def test_shapes_and_dtypes_that_do_not_fit_are_refused() -> None:
    points, centroids = case(3, 5, 2)
    with pytest.raises(ValueError, match="not rows of one width"):
        nearest_centroids(points[:, :1], centroids)
    with pytest.raises(ValueError, match="not rows of one width"):
        nearest_centroids(points.double(), centroids)
