"""Scores of groups: numbers small enough to check by eye."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.structured.scores import distances, makers
from tests.coupling.networks import NETWORKS, built
from tests.coupling.test_stated import raised

PARAMS = {
    "a": {
        "kernel": jnp.array([[1.0, -2.0, 0.5], [1.0, 1.0, -0.5]]),
        "scale": jnp.array([3.0, -1.0, 2.0]),
    },
    "b": {"kernel": jnp.array([[1.0], [-4.0], [2.0]])},
}
FN = lambda p, x: (x @ p["a"]["kernel"] * p["a"]["scale"][None]) @ p["b"]["kernel"]
STRUCTURE = jp.analyze(FN, PARAMS, jnp.ones((1, 2)))
GRADS = jax.tree.map(lambda w: jnp.full_like(w, 2.0), PARAMS)


def close(scores, wanted):
    (found,) = scores.values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_norms_are_summed_over_slices_and_averaged_over_members():
    close(jp.structured.per_group(STRUCTURE)(PARAMS), [(2 + 1) / 2, (3 + 4) / 2, (1 + 2) / 2])
    close(
        jp.structured.per_group(STRUCTURE, jp.structured.square)(PARAMS),
        [(2 + 1) / 2, (5 + 16) / 2, (0.5 + 4) / 2],
    )
    close(jp.structured.per_group(STRUCTURE, prunable=jp.matching("*/scale"))(PARAMS), [3, 1, 2])


def test_taylor():
    close(jp.structured.per_group(STRUCTURE, jp.saliency)(PARAMS, grads=GRADS), [3, 7, 3])
    signed = jp.structured.per_group(STRUCTURE, jp.structured.taylor, of=jp.structured.abs_of_sum)
    close(signed(PARAMS, grads=GRADS), [6, 10, 4])
    assert "needs gradients" in raised(lambda: signed(PARAMS))


def test_geometric_median():
    # the filters (1, 0), (0, 1), (.5, .5), (3, 3); the third is nearest to all others
    filters = {"w": jnp.array([[1.0, 0, 0.5, 3], [0, 1, 0.5, 3]]), "v": jnp.ones((4, 1))}
    structure = jp.analyze(lambda p, x: x @ p["w"] @ p["v"], filters, jnp.ones((1, 2)))
    close(jp.structured.geometric_median(structure)(filters), [5.7269, 5.7269, 4.9497, 10.7466])


def test_distances_are_of_the_filters_of_a_layer_itself():
    """What reads them says nothing, however large."""
    params = {"a": jax.random.normal(jax.random.key(0), (5, 6)), "b": jnp.zeros((6, 3))}
    fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    structure = jp.analyze(fn, params, jnp.ones((1, 5)))
    loud = params | {"b": 10 * jax.random.normal(jax.random.key(1), (6, 3))}
    filters = np.asarray(params["a"]).T
    wanted = np.linalg.norm(filters[:, None] - filters[None], axis=-1).sum(1)
    for own in (params, loud):
        np.testing.assert_allclose(
            jp.structured.geometric_median(structure)(own)["a"], wanted, rtol=1e-5
        )


MADE = {
    "batch norm": [["Conv_0[3]", "Conv_2[3]"], ["Conv_1[3]"]],
    "channels first": [["Conv_0[3]"], ["Conv_1[3]"], ["Dense_1[1]"]],
    "concat": [["Conv_0[3]"], ["Conv_1[3]"], ["Conv_2[3]"]],
    # a depthwise kernel has a filter a channel, a grouped one of each output
    "separable": [["Conv_0[3]", "Conv_1[3]"], ["Conv_2[3]", "Conv_3[3]", "Dense_0[1]"],
                  ["Conv_2[3]"], ["Conv_3[3]", "Dense_0[1]"], ["Dense_1[1]"]],
    "unet": [["Conv_0[3]"], ["Conv_1[3]"], ["ConvTranspose_0[3]"], ["Conv_3[3]"]],
    "fused heads": [["Dense_0[1]"]] * 3,
    "scan": [["Dense_0[1]", "Dense_0[2]"], ["Dense_1[2]"]],
    "lstm": [["hf[1]", "hg[1]", "hi[1]", "ho[1]", "if[1]", "ig[1]", "ii[1]", "io[1]"]],
    "experts": [["Dense_0[1]", "down[2]"], ["up[2]"]],
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_what_makes_neurons_is_what_has_them_as_outputs(name):
    variables, x = built(name)
    structure = jp.analyze(NETWORKS[name].module.apply, variables, x)
    last = lambda member: f"{member.path.removesuffix('/kernel').split('/')[-1]}[{member.axis}]"
    assert [sorted(map(last, own)) for own in makers(structure).values()] == MADE[name]


def test_kernels_that_are_reshaped_or_transposed_make_neurons_too():
    params = {"a": jnp.ones((6, 4)), "b": jnp.ones((6, 6)), "c": jnp.ones((2, 2, 3))}
    fn = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"].T) @ p["b"]) @ p["c"].reshape(2, 6).T
    made = makers(jp.analyze(fn, params, jnp.ones((1, 4))))
    assert {name: list(map(str, own)) for name, own in made.items()} == {
        "a": ["a[0]"],
        **{name: ["b[1]"] for name in made if name != "a"},
    }


@pytest.mark.full
def test_of_a_residual_stream_it_is_the_mean_over_layers():
    variables, x = built("batch norm")
    structure = jp.analyze(NETWORKS["batch norm"].module.apply, variables, x)
    found = jp.structured.geometric_median(structure)(variables)["params/Conv_0"]
    own = [variables["params"][name]["kernel"].reshape(-1, 8).T for name in ("Conv_0", "Conv_2")]
    each = [np.linalg.norm(f[:, None] - f[None], axis=-1).sum(1) for f in map(np.asarray, own)]
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-4)


@pytest.mark.full
def test_ten_steps_of_the_geometric_median_beside_the_equation():
    """He et al., 2019: the filters nearest to all that are left go, layer by layer."""
    rng = np.random.default_rng(0)
    shapes = {"u": (3, 3, 2, 12), "v": (3, 3, 12, 10), "w": (10, 3)}
    params = {name: jnp.asarray(rng.normal(size=n), jnp.float32) for name, n in shapes.items()}
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    fn = lambda p, x: jnp.tanh(conv(jnp.tanh(conv(x, p["u"])), p["v"])).mean((1, 2)) @ p["w"]
    structure = jp.analyze(fn, params, jnp.ones((1, 4, 4, 2)))
    sparsity = optax.linear_schedule(0.0, 0.8, 10)
    transform = jp.structured.prune(
        structure, jp.structured.geometric_median(structure), jp.uniform, sparsity
    )
    state, left = transform.init(params), {name: np.arange(shapes[name][3]) for name in "uv"}
    weights = {name: np.asarray(params[name], np.float64) for name in "uv"}
    for step in range(11):
        params = jp.apply_masks(params, state.masks)
        state = transform.update(state, params, grads=params, step=step, opt_state=())
        scores = {}
        for name, own in left.items():
            filters = weights[name][..., own].reshape(-1, len(own)).T
            scores[name] = [sum(np.linalg.norm(f - g) for g in filters) for f in filters]
        for name in left:
            n = shapes[name][3] - round(float(sparsity(step)) * shapes[name][3])
            order = np.argsort(scores[name], kind="stable")
            left[name] = np.sort(left[name][order[len(order) - n :]])
        weights["v"][:, :, np.setdiff1d(np.arange(12), left["u"])] = 0  # what read them is masked
        kept = jp.structured.kept(structure, state.masks)
        for name in left:
            np.testing.assert_array_equal(np.flatnonzero(kept[name]), left[name])


def test_what_is_pruned_is_no_neighbor():
    own = jnp.array([[1.0, 0], [0, 1], [0.5, 0.5], [0, 0]])
    np.testing.assert_allclose(distances(own)[:3], distances(own[:3]), rtol=1e-5)


def test_lamp_and_other_normalizations():
    own = lambda params, **_: {"a": jnp.array([1.0, 2, 3, 4])}
    close(jp.lamp(own)({}), [1 / 30, 4 / 29, 9 / 25, 1])
    close(jp.structured.normalized(own)({}), [0.4, 0.8, 1.2, 1.6])
    close(jp.structured.normalized(own, jnp.max)({}), [0.25, 0.5, 0.75, 1])
    zero = lambda params, **_: {"a": jnp.zeros(2)}
    close(jp.structured.normalized(zero)({}), [0, 0])


@pytest.mark.full
@pytest.mark.parametrize("name", ["channels first", "concat"])
def test_the_entries_of_a_neuron_are_its_own(name):
    """Of flattened, grouped, repeated and joined axes: where one is one, the others score zero."""
    variables, x = built(name)
    structure = jp.analyze(NETWORKS[name].module.apply, variables, x)
    everywhere = jp.structured.per_group(
        structure, prunable=jp.matching(lambda path, w: w.ndim > 0)
    )
    for group, (n, _) in structure.groups.items():
        masks = jp.structured.masks(structure, {group: jnp.arange(n) == n - 1})
        marks = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
        scores = everywhere(marks)[group]
        assert scores[-1] > 0 and not scores[:-1].any()


def test_random_is_drawn_anew_each_step():
    score = jp.structured.random(jax.random.key(0), STRUCTURE)
    first, second = (score(PARAMS, step=step)["a"] for step in (0, 1))
    assert first.shape == (3,) and (first != second).any()
    assert "needs a key" in raised(lambda: jp.structured.random(0, STRUCTURE), TypeError)


def test_nothing_to_score_by():
    none = lambda params: jax.tree.map(lambda w: None, params)
    said = raised(lambda: jp.structured.per_group(STRUCTURE, prunable=none)(PARAMS))
    assert "none of 'a/kernel', 'a/scale', 'b/kernel', the leaves of group 'a', is prunable" in said
    assert "analyze(..., freeze=...)" in said
    said = raised(lambda: jp.structured.geometric_median(STRUCTURE, none)(PARAMS))
    assert "group 'a' is made by 'a/kernel[1]', and none of these is prunable" in said


def test_params_of_another_network():
    score = jp.structured.per_group(STRUCTURE)
    wider = {**PARAMS, "b": {"kernel": jnp.ones((4, 1))}}
    said = raised(lambda: score(wider))
    assert "per_group: 'b/kernel' has shape (4, 1), and had (3, 1) when it was analyzed" in said
    said = raised(lambda: score({**PARAMS, "d": jnp.ones(2)}))
    assert "there was no 'd' when the function was analyzed; there were 'a/kernel', 'a/s" in said
    stack = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), PARAMS)
    assert "vmap over seeds" in raised(lambda: score(stack))
    assert jax.vmap(score)(stack)["a"].shape == (2, 3)
