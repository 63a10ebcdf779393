"""What a function reads: discovery, substitution, and the checks around the vector field."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from odegrad.capture import capture
from odegrad.errors import (
    FieldOutputError,
    InvalidTypeError,
    OdegradWarning,
    UnreachableTensorError,
)
from odegrad.field import VectorField
from odegrad.state import Structure

F64 = torch.float64
GLOBAL = torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True)
HELD: dict[str, torch.Tensor] = {"w": torch.tensor([5.0, 7.0], dtype=F64, requires_grad=True)}
Y = torch.tensor([0.3, -0.4], dtype=F64)


def weight(*values):
    return torch.tensor(values or (1.5, -2.5), dtype=F64, requires_grad=True)


def make(f, y=Y, args=(), running=None):
    leaves = tuple(torch.utils._pytree.tree_leaves(y))
    return VectorField(f, Structure(y), leaves, args, running), leaves


def found(f, **kwargs):
    field, leaves = make(f, **kwargs)
    return field.discover(0.0, leaves)


def same(tensors, expected):
    assert {id(x) for x in tensors} == {id(x) for x in expected}
    assert len(tensors) == len(expected)


# Discovery.


def test_module_parameters_in_order():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    for f in (lambda t, y: net(y), functools.partial(lambda n, t, y: n(y), net)):
        assert [id(x) for x in found(f)] == [id(x) for x in net.parameters()]
    field, leaves = make(lambda t, y: net(y))
    field.discover(0.0, leaves)
    names = [item.name for item in field._captures.items]
    assert names == [name for name, _ in net.named_parameters()]


def test_frozen_parameters_are_left_out():
    net = nn.Linear(2, 2).double()
    net.bias.requires_grad_(False)
    same(found(lambda t, y: net(y)), [net.weight])


def test_shared_parameters_count_once():
    layer = nn.Linear(2, 2).double()
    net = nn.Sequential(layer, nn.Tanh(), layer)
    same(found(lambda t, y: layer(net(y))), list(layer.parameters()))


def test_differentiable_buffers():
    net = nn.Module()
    net.register_buffer("w", weight())
    same(found(lambda t, y: net.w * y), [net.w])


def test_closures_partials_defaults_and_globals():
    a, b, c, d = weight(), weight(), weight(), weight()

    def inner(t, y):
        return a * y

    def f(scale, t, y, *, extra, default=d):
        return inner(t, y) * scale * extra + GLOBAL * default

    same(found(functools.partial(f, b, extra=c)), [a, b, c, d, GLOBAL])


def test_containers_and_nested_functions():
    a, b = weight(), weight()
    box = {"list": [a, (b,)]}

    def f(t, y):
        def nested():
            return HELD["w"] * GLOBAL

        return box["list"][0] * y + box["list"][1][0] * nested()

    same(found(f), [a, b, GLOBAL, HELD["w"]])


class Plain:
    """A callable that is no module, with a module and a tensor hanging on it."""

    def __init__(self):
        self.net, self.w, self.unused = nn.Linear(2, 2).double(), weight(), weight() * 2

    def __call__(self, t, y):
        return self.net(y) * self.w

    def method(self, t, y):
        return self(t, y) + GLOBAL


def test_plain_objects_and_bound_methods():
    x = Plain()
    same(found(x), [*x.net.parameters(), x.w])
    same(found(x.method), [*x.net.parameters(), x.w, GLOBAL])


def test_attributes_of_an_earlier_graph_are_left_out_unless_read():
    x = Plain()
    assert id(x.unused) not in {id(p) for p in found(x)}
    same(found(lambda t, y: x(t, y) * x.unused), [*x.net.parameters(), x.w, x.unused])


def test_non_leaf_tensors():
    w = weight()
    product = w * 2
    same(found(lambda t, y: product * y), [product])


def test_a_module_whose_parameter_is_computed():
    """A plain tensor attribute of a module, with a history: what hypernetworks set."""
    net = nn.Linear(2, 2).double()
    del net.weight
    net.weight = weight() * torch.eye(2, dtype=F64)
    same(found(lambda t, y: net(y)), [net.weight, net.bias])


def test_a_branch_on_time_hides_nothing():
    early, late = nn.Linear(2, 2).double(), weight()
    same(
        found(lambda t, y: early(y) if t < 0.5 else late * y),
        [*early.parameters(), late],
    )


class Holder:
    """Hides what it reads from a call at t = 0."""

    def __init__(self):
        self.w = weight()

    def method(self, t, y):
        return y if t < 0.5 else self.w * y


def test_the_scan_sees_by_itself_what_a_branch_hides():
    """Everything here is out of the trace's sight: the call at t = 0 reads nothing."""
    a, b, c, d = weight(), weight(), weight(), weight()
    product = a * 2

    def late(t, y, *, keyword=d):
        def nested():
            return GLOBAL * y

        return y if t < 0.5 else nested() * product * keyword

    same(found(late), [product, d, GLOBAL])
    same(found(lambda t, y: -late(t, y)), [product, d, GLOBAL])

    def scaled(x, t, y, *, z):
        return y if t < 0.5 else x * y * z

    same(found(functools.partial(scaled, b, z=c)), [b, c])
    holder = Holder()
    same(found(holder.method), [holder.w])

    @functools.wraps(scaled)
    def wrapped(t, y):
        return y

    wrapped.__wrapped__ = functools.partial(scaled, b, z=c)
    same(found(wrapped), [b, c])


def test_what_only_the_trace_can_see():
    class Odd:
        __slots__ = ("w",)

    odd = Odd()
    odd.w = weight()
    same(found(lambda t, y: odd.w * y), [odd.w])


def test_arguments_come_last_and_may_be_captured_too():
    a, b, c = weight(), weight(), torch.ones(2, dtype=F64)
    field, leaves = make(lambda t, y, p, q: a * y * p["b"] + b + q, args=({"b": b}, c))
    p = field.discover(0.0, leaves)
    assert [id(x) for x in p] == [id(a), id(b), id(b), id(c)]


def test_the_state_and_time_are_not_captured():
    y = Y.clone().requires_grad_()
    w = weight()
    field, leaves = make(lambda t, y: w * y * t, y=y)
    same(field.discover(0.0, leaves), [w])


def test_names():
    w = weight()
    field, leaves = make(lambda t, y: w * y * GLOBAL)
    field.discover(0.0, leaves)
    assert {item.name for item in field._captures.items} == {
        "captured variable 'w', shape [2]",
        "global variable 'GLOBAL', shape [2]",
    }


def test_running_cost_is_searched_too():
    a, b = weight(), weight()
    same(found(lambda t, y: a * y, running=lambda t, y: (b * y).sum()), [a, b])


# Discovery leaves no mark.


def test_random_numbers_and_buffers_are_as_before():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2)).double().train()
    y = torch.randn(4, 2, dtype=F64)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    field, leaves = make(lambda t, y: net(y), y=y)
    field.discover(0.0, leaves)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert field.stochastic
    assert field.snapshot() is not None
    assert field.evaluations == 0

    quiet, leaves = make(lambda t, y: net[2](y), y=y)
    quiet.discover(0.0, leaves)
    assert not quiet.stochastic
    assert quiet.snapshot() is None


def test_a_snapshot_makes_the_second_call_the_first():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).double().train()
    y = torch.randn(4, 2, dtype=F64)
    field, leaves = make(lambda t, y: net(y), y=y)
    p = field.discover(0.0, leaves)
    snapshot = field.snapshot()
    first = field(0.0, leaves, p)
    mean = net[0].running_mean.clone()
    assert field(0.0, leaves, p)[0].ne(first[0]).any()
    snapshot.restore()
    assert torch.equal(field(0.0, leaves, p)[0], first[0])
    assert torch.equal(net[0].running_mean, mean)


def test_an_exception_while_tracing_leaves_no_mark():
    net = nn.BatchNorm1d(2).double().train()

    def f(t, y):
        net(y)
        torch.rand(3)
        raise KeyError("broken")

    state = torch.get_rng_state()
    field, leaves = make(f, y=torch.randn(4, 2, dtype=F64, generator=torch.Generator()))
    with pytest.raises(KeyError, match="broken"):
        field.discover(0.0, leaves)
    assert torch.equal(state, torch.get_rng_state())
    assert not net.running_mean.any()


def test_a_trace_inside_an_except_block_is_not_an_exception():
    """A solve inside an except block keeps the marks that its own calls make, no more, no less."""
    w = weight()
    try:
        raise ValueError("outer")
    except ValueError:
        field, leaves = make(lambda t, y: w * y)
        same(field.discover(0.0, leaves), [w])


def test_no_gradient_is_recorded_while_tracing():
    w, modes = weight(), []

    def f(t, y):
        modes.append(torch.is_grad_enabled())
        return w * y

    found(f)
    assert modes == [False]


# Substitution.


def test_bind_by_name_and_by_identity():
    net, w = nn.Linear(2, 2).double(), weight()

    def f(t, y):
        return net(y) * w + torch.stack([w[0], w[1]]) + torch.cat([w[:1], w[1:]])

    field, leaves = make(f)
    p = field.discover(0.0, leaves)
    other = tuple(torch.randn_like(x) for x in p)
    before = f(0.0, Y)
    values = dict(zip(map(id, p), other, strict=True))
    got = field.bound(other, lambda: field(0.0, leaves, other))[0]
    v = values[id(w)]
    expected = nn.functional.linear(Y, values[id(net.weight)], values[id(net.bias)]) * v + 2 * v
    assert torch.equal(got, expected)
    assert torch.equal(f(0.0, Y), before)
    assert net.weight is p[0]


def test_bind_inside_a_list_argument():
    w, v = weight(), weight(9.0, 9.0)
    field, leaves = make(lambda t, y: torch.stack([w, y]).sum(0))
    field.discover(0.0, leaves)
    assert torch.equal(field.bound((v,), lambda: field(0.0, leaves, (v,)))[0], v + Y)


def test_an_exception_restores_what_was_bound():
    net, w = nn.Linear(2, 2).double(), weight()
    field, leaves = make(lambda t, y: net(y) * w)
    p = field.discover(0.0, leaves)
    other = tuple(torch.randn_like(x) for x in p)

    def fail():
        assert net.weight is not p[0]
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        field.bound(other, fail)
    assert net.weight is p[0]
    assert isinstance(net.weight, nn.Parameter)
    assert torch.equal(field(0.0, leaves, p)[0], net(Y) * w)
    assert net.weight.grad is None


def test_binding_what_is_read_anyway_substitutes_nothing():
    net = nn.Linear(2, 2).double()
    field, leaves = make(lambda t, y: net(y))
    p = field.discover(0.0, leaves)
    assert field.own(p, [True] * len(p))[0] is net.weight
    seen = field.bound(p, lambda: net.weight)
    assert seen is net.weight


def test_own_leaves_out_what_needs_no_cotangent():
    net = nn.Linear(2, 2).double()
    field, leaves = make(lambda t, y: net(y))
    p = field.discover(0.0, leaves)
    own = field.own(p, [True, False])
    assert own[0] is net.weight
    assert not own[1].requires_grad
    line = field.bound(own, lambda: field.linearize(0.0, leaves, own))
    _, _, grads = line.vjp((torch.ones_like(Y),))
    assert grads[0] is not None
    assert grads[1] is None


def test_own_detaches_what_has_a_history():
    base = weight()
    product = base * 2
    field, leaves = make(lambda t, y: product * y)
    p = field.discover(0.0, leaves)
    (own,) = field.own(p, [True] * len(p))
    assert own is not product
    assert own.is_leaf
    assert own.requires_grad
    line = field.bound((own,), lambda: field.linearize(0.0, leaves, (own,)))
    _, _, (grad,) = line.vjp((torch.ones_like(Y),))
    assert torch.equal(grad, Y)


def test_gradients_reach_every_captured_tensor():
    net, w, x = nn.Linear(2, 2).double(), weight(), Plain()

    def f(t, y):
        return net(y) * w + GLOBAL * x(t, y)

    field, leaves = make(f)
    p = field.discover(0.0, leaves)
    u = torch.tensor([0.7, -1.1], dtype=F64)
    own = field.own(p, [True] * len(p))
    _, (grad_y,), grads = field.bound(own, lambda: field.linearize(0.0, leaves, own)).vjp((u,))
    y = Y.clone().requires_grad_()
    expected = torch.autograd.grad(f(0.0, y), [y, *p], u)
    for a, b in zip([grad_y, *grads], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


# A tensor that no gradient would reach.


class Scaled(torch.autograd.Function):
    """A custom function, whose arguments no function mode sees."""

    @staticmethod
    def forward(ctx, w, y):
        ctx.save_for_backward(w, y)
        return w * y

    @staticmethod
    def backward(ctx, grad):
        w, y = ctx.saved_tensors
        return grad * y, grad * w


def test_a_tensor_that_only_a_custom_function_reads():
    """Found by the scan where it is a leaf; one with a history cannot be substituted: an error."""
    w = weight()
    field, leaves = make(lambda t, y: Scaled.apply(w, y))
    p = field.discover(0.0, leaves)
    same(p, [w])
    own = field.own(p, [True])
    _, _, (grad,) = field.bound(own, lambda: field.linearize(0.0, leaves, own)).vjp(
        (torch.ones_like(Y),)
    )
    assert torch.equal(grad, Y)

    product = w * 2
    field, leaves = make(lambda t, y: Scaled.apply(product, y))
    own = field.own(field.discover(0.0, leaves), [True])
    line = field.bound(own, lambda: field.linearize(0.0, leaves, own))
    with pytest.raises(UnreachableTensorError):
        line.vjp((torch.ones_like(Y),))


def test_unreachable_tensors_are_refused():
    late = weight()
    held = []

    def f(t, y):
        return y * held[0] if held else y * 2

    field, leaves = make(f)
    p = field.discover(0.0, leaves)
    assert p == ()
    held.append(late)  # appears only after the discovery
    line = field.linearize(0.0, leaves, p)
    with pytest.raises(UnreachableTensorError, match=r"shape \[2\].*args="):
        line.vjp((torch.ones_like(Y),))


def test_a_restarted_state_is_refused():
    """f that detaches y and marks the copy would lose the gradient of y."""

    def f(t, y):
        with torch.enable_grad():
            return y.detach().requires_grad_() * 2

    field, leaves = make(f)
    field.discover(0.0, leaves)
    with pytest.raises(UnreachableTensorError):
        field.linearize(0.0, leaves, ()).vjp((torch.ones_like(Y),))


def test_a_detached_tensor_is_fine():
    held = [torch.ones(2, dtype=F64)]
    field, leaves = make(lambda t, y: y * held[0])
    field.discover(0.0, leaves)
    field.linearize(0.0, leaves, ()).vjp((torch.ones_like(Y),))


# Wrong outputs.


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda t, y: None, "NoneType"),
        (lambda t, y: (y,), "structure of the state"),
        (lambda t, y: {"y": y}, "structure of the state"),
        (lambda t, y: 1.0, "is a float"),
        (lambda t, y: y.sum(), r"shape \[\] where the state is \[2\]"),
        (lambda t, y: y[:1], r"shape \[1\] where the state is \[2\]"),
        (lambda t, y: y[None], r"shape \[1, 2\] where the state is \[2\]"),
        (lambda t, y: y.to(torch.complex128), "make the initial state complex"),
        (lambda t, y: y.long(), "floating-point"),
        (lambda t, y: y > 0, "floating-point"),
        (lambda t, y: y.mul_(2), "in place"),
        (lambda t, y: torch.sin_(y) * 2, "in place"),
    ],
)
def test_wrong_outputs(f, message):
    field, leaves = make(f, y=Y.clone())
    with pytest.raises(FieldOutputError, match=message):
        field(0.0, leaves, ())


def test_wrong_outputs_of_a_structured_state():
    y = {"q": torch.zeros(2, dtype=F64), "p": [torch.zeros(3, dtype=F64)]}
    for f in (
        lambda t, y: {"q": y["q"]},
        lambda t, y: {"q": y["q"], "p": y["p"][0]},
        lambda t, y: {"q": y["q"], "p": [y["p"][0], y["q"]]},
        lambda t, y: (y["q"], y["p"]),
        lambda t, y: {"q": y["p"][0], "p": [y["q"]]},
    ):
        field, leaves = make(f, y=y)
        with pytest.raises(FieldOutputError):
            field(0.0, leaves, ())


def test_a_wider_derivative_warns_once_and_is_rounded():
    y = torch.zeros(2)
    field, leaves = make(lambda t, y: y.double(), y=y)
    with pytest.warns(OdegradWarning, match="rounded"):
        (slope,) = field(0.0, leaves, ())
    assert slope.dtype == torch.float32
    field(0.0, leaves, ())
    narrow, leaves = make(lambda t, y: y.float(), y=Y)
    assert narrow(0.0, leaves, ())[0].dtype == F64


def test_running_cost_must_be_one_real_tensor():
    for cost in (lambda t, y: 1.0, lambda t, y: (y, y), lambda t, y: y.to(torch.complex128)):
        field, leaves = make(lambda t, y: y, running=cost)
        with pytest.raises(InvalidTypeError, match="one real tensor"):
            field(0.0, leaves, ())


# Time.


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (F64, F64),
        (torch.complex64, torch.float32),
        (torch.complex128, F64),
    ],
)
def test_time_comes_as_a_tensor_of_the_widest_real_dtype(dtype, expected):
    times = []

    def f(t, y):
        times.append(t)
        return y

    field, leaves = make(f, y=torch.zeros(3, dtype=dtype))
    field(0.25, leaves, ())
    field(torch.tensor(0.25, dtype=F64), leaves, ())
    field(torch.full((3,), 0.25, dtype=F64), leaves, ())
    assert [t.shape for t in times] == [(), (), (3,)]
    assert {t.dtype for t in times} == {expected}


def test_capture_can_be_used_alone():
    w = weight()
    captures = capture([lambda y: w * y], lambda: w * Y, [Y], torch.device("cpu"))
    same(captures.tensors(), [w])
    assert captures.bind((Y,), lambda: w * 1).equal(Y)
