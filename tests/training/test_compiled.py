"""A network is compiled only where outputs and all gradients stay what they were; what is refused, and that nothing else changes."""

import copy
import shutil

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError
from limbeck.methods import find
from limbeck.methods.generators.generator import Ingredients
from limbeck.noise import VE
from limbeck.training import Loop, LoopOptions, OptimizerOptions, TensorSource, set_precision
from limbeck.training.compiled import Question, compile_checked, compile_roles, networks, recorded

RATE = OptimizerOptions(lr=1e-2)
X = torch.linspace(-1, 1, 24).reshape(12, 2)
LABELS = {"label": torch.arange(12) % 3}


@pytest.fixture(autouse=True)
def anew():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Small(nn.Module):
    """A network outside the library, whose annotations the tests check at every call: compilers would look into that too."""

    feature_layers = encoder_layers = ("hidden",)

    def __init__(self):
        super().__init__()
        self.label, self.hidden, self.output = nn.Embedding(3, 2), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x, c_noise, cond=None):
        x = x if cond is None else x + self.label(cond["label"])
        return self.output(torch.tanh(self.hidden(torch.cat([x, c_noise[:, None]], 1))))


class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return torch.tanh(self.linear(x))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x):
        return self.last(torch.nn.functional.silu(self.norm(self.first(x))))


def method_of(name="dmd", **options):
    torch.manual_seed(0)
    teacher = Preconditioned(Small(), VE(), "edm", 0.5)
    cls, options_class, _ = find(name).load()
    parts = Ingredients(teacher, (2,), X, LABELS, True, 0.5, Small)
    return cls(parts, options_class(iterations=6, student=RATE, critic=RATE, **options))


def loop_of(method):
    return Loop(method, TensorSource(X, LABELS), LoopOptions(6, 4), quiet=True)


def compiled(loop, **how):
    return compile_roles(loop.method, (loop.batches(i)[0] for i in range(10)), **how)


def spoiling(change):
    """A backend that runs every graph as it is, but for what ``change`` does to the results of the backward ones."""

    def backward(graph, inputs):
        return make_boxed_func(lambda *given: change([*graph(*given)]))

    return aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=backward)


def zeroed(results):
    i = max(i for i, g in enumerate(results) if g is not None)
    return [*results[:i], torch.zeros_like(results[i]), *results[i + 1 :]]


def trained(loop):
    loop.train()
    return {n: v.clone() for role in loop.method.roles.values() for n, v in role.module.state_dict().items()}


@pytest.mark.parametrize("name", ["dmd", "sid"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiler_that_computes_right_changes_nothing(backend, name):
    plain, fast = loop_of(method_of(name)), loop_of(method_of(name))
    names = [*fast.method.student.state_dict()]
    before = torch.get_rng_state()
    assert set(compiled(fast, backend=backend)) == {"teacher", "student", "critic"}
    assert torch.equal(torch.get_rng_state(), before) and [*fast.method.student.state_dict()] == names
    assert fast.method.student.network._compiled_call_impl is not None
    assert all(p.requires_grad for p in fast.method.student.parameters()) and fast.step == 0
    assert not any(p.requires_grad for p in fast.method.teacher.parameters())
    for name, value in trained(plain).items():
        torch.testing.assert_close(trained(fast)[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (zeroed, r"1 of \d+ tensors .*the gradient of .* most \(1 of its size\)"),
        (lambda r: [None if g is None else 1.001 * g for g in r], r"\d+ of \d+ tensors .*\(0\.001 of its size\)"),
        (lambda r: [None if g is None else g * torch.nan for g in r], r".*\(inf of its size\)"),
    ],
)
def test_wrong_gradients_are_refused_and_the_network_is_as_it_was(change, found):
    loop, plain = loop_of(method_of()), loop_of(method_of())
    with pytest.raises(LimbeckError, match=f"the network of the role 'student' is not compiled: {found}.*leave out compile"):
        compiled(loop, backend=spoiling(change))
    assert all(n._compiled_call_impl is None for role in loop.method.roles.values() for n in networks(role.module))
    for name, value in trained(plain).items():
        assert torch.equal(trained(loop)[name], value)


def test_a_wrong_gradient_of_the_input_alone_is_refused():
    network = Affine()
    inputs = (torch.ones(2, 3),)
    through = Question(inputs, {}, True, True, frozenset())
    with pytest.raises(LimbeckError, match="1 of 2 tensors .*the gradient of its input most"):
        compile_checked(network, [through], "the teacher", backend=spoiling(zeroed))
    compile_checked(
        network, [Question(inputs, {}, False, False, frozenset())], "it", backend=spoiling(zeroed)
    )  # none is wanted


def test_a_wrong_answer_is_refused():
    def doubled(graph, inputs):
        return lambda *given: [2 * value for value in graph.forward(*given)]

    question = Question((torch.ones(2, 3),), {}, False, False, frozenset())
    with pytest.raises(LimbeckError, match=r"its answer most \(1 of its size\)"):
        compile_checked(Affine(), [question], "the teacher", backend=doubled)


def test_a_compiler_that_fails_is_said():
    def broken(graph, inputs):
        raise RuntimeError("no such luck")

    loop = loop_of(method_of())
    with pytest.raises(LimbeckError, match=r"cannot be compiled \(.*leave out compile"):
        compiled(loop, backend=broken)
    loop.iterate()


def test_every_set_of_gradients_is_asked_for():
    method = method_of("sid")
    loop = loop_of(method)
    asked = recorded(method, [loop.batches(0)[0]], [method.teacher.network, method.critic.network, method.student.network])
    modes = lambda module: {(q.grad, q.input_grad, bool(q.trained)) for q in asked[id(module.network)]}  # noqa: E731
    assert modes(method.teacher) == {(True, True, False)}
    assert modes(method.critic) == {(True, True, False), (True, False, True)}
    assert modes(method.student) == {(False, False, True), (True, False, True)}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("rcm", {}, "RCM takes forward-mode derivatives of Small"),
        ("dmd", {"gan_weight": 0.1, "gan_on": "critic"}, "a discriminator reads the layers"),
        ("dmd", {"gan_weight": 0.1, "gan_on": "critic", "gan_head": "mean"}, "hooks read or change the layers"),
    ],
)
def test_what_cannot_be_compiled_is_refused(name, options, said):
    loop = loop_of(method_of(name, **options))
    with pytest.raises(LimbeckError, match=f"{said}.*leave out compile"):
        compiled(loop, backend="eager")
    assert all(n._compiled_call_impl is None for role in loop.method.roles.values() for n in networks(role.module))


def test_bfloat16_is_refused():
    method = method_of()
    set_precision(method.roles, torch.bfloat16)
    with pytest.raises(LimbeckError, match="rounding hides what a compiler does wrong; take float32"):
        compiled(loop_of(method), backend="eager")


def test_the_outermost_networks_are_compiled():
    inner = Preconditioned(nn.Linear(2, 2), VE())
    assert networks(inner) == [inner.network]
    outer = nn.ModuleList([inner, copy.deepcopy(inner)])
    assert networks(outer) == [m.network for m in outer]
    assert networks(inner.network) == [inner.network]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch's compiler needs a C++ one")
def test_torchs_own_compiler():
    torch.manual_seed(0)
    network = Convolutions()
    x = torch.randn(2, 1, 8, 8)
    expected = network(x)
    names = frozenset(n for n, _ in network.named_parameters())
    compile_checked(network, [Question((x,), {}, True, False, names)], "the network")
    assert network._compiled_call_impl is not None
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
