"""A step that is recorded must do the same when replayed: CUDA graphs, and a recorder of operations that stands for them on the CPU."""

from dataclasses import fields

import pytest
import torch
from tiny import count_likelihood, seeded, sum_likelihood, tiny_prior
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from hybridsep.inference import decoder as decoding
from hybridsep.inference import likelihood, search
from hybridsep.inference.counts import likelihood_from_tensors
from hybridsep.inference.decoder import GraphedState, PriorStack
from hybridsep.inference.search import particle_filter
from hybridsep.kernels import bodies, replay
from hybridsep.kernels.replay import Replayed, ReplayedFilter

K, LENGTH, PARTICLES = 12, 40, 6
AWAITED = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "lift_fresh", "item"}


class Recorder(TorchDispatchMode):
    """Writes down every operation on tensors, does them again on demand, and refuses those for which a host waits for its device."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = (
            [x for x in tree_leaves(args[1:2]) if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
            if name.startswith("index")
            else []
        )
        assert name not in AWAITED and not masks, f"{name} makes the host wait"
        return self.note(func, args, kwargs or {})

    def note(self, function, args, kwargs):
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, result))
        return result

    def replay(self):
        made = {}

        def current(x):
            return made.get(id(x), x) if isinstance(x, torch.Tensor) else x

        for function, args, kwargs, before in self.calls:
            after = function(*tree_map(current, args), **tree_map(current, kwargs))
            made |= {
                id(old): new
                for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True)
                if isinstance(old, torch.Tensor)
            }


@pytest.fixture
def recorder(monkeypatch):
    """A recorder to whom the body of a kernel is one operation; likelihoods use their kernels."""
    recorder = Recorder()

    def run(body, *arguments):
        if not torch._C._len_torch_dispatch_stack():
            return body(*arguments)
        with _disable_current_modes():
            return recorder.note(body, arguments, {})

    monkeypatch.setattr(bodies, "run_body", run)
    monkeypatch.setattr(likelihood, "runs_triton", lambda tensor: True)
    return recorder


def static_stack(monkeypatch):
    stack = PriorStack([tiny_prior(seed=s, window=16, crop_codes=16) for s in range(2)])
    monkeypatch.setattr(stack, "start", lambda b, n: GraphedState(stack, b, n), raising=False)
    return stack


LIKELIHOODS = {"sum": sum_likelihood, "counts": count_likelihood}


@pytest.mark.parametrize("kind", ["sum", "counts"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_a_recorded_step_replayed_finds_what_the_steps_one_by_one_find(kind, threshold, recorder, monkeypatch):
    stack, model = static_stack(monkeypatch), LIKELIHOODS[kind]()
    codes = torch.randint(K, (2, LENGTH), generator=seeded(1))
    one_by_one = particle_filter(stack, model, codes, PARTICLES, seeded(2), ess_threshold=threshold)
    assert one_by_one.resampled.any() == (threshold > 0) and not one_by_one.resampled.all()

    uniforms = search.mixture_uniforms(seeded(2), 2, LENGTH, 2 * PARTICLES + 1)
    enough = search.enough_particles(PARTICLES, threshold)
    steps = ReplayedFilter(stack.start(2, PARTICLES), model, codes, uniforms, enough)
    steps.weigh_and_draw()
    steps.advance()
    with recorder:
        steps.advance()
    for _ in range(LENGTH - 3):
        recorder.replay()
    replayed = search._from_replay(steps, codes)
    for name in (field.name for field in fields(replayed)):
        assert torch.equal(getattr(replayed, name), getattr(one_by_one, name)), name


def test_the_recorder_notices_what_would_break_a_graph(recorder):
    """The test above would prove nothing with a recorder that lets everything pass."""
    values = torch.arange(4.0)
    for waits in (
        lambda: values.sum().item(),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: bool(values.any()),
    ):
        with pytest.raises(AssertionError, match="wait"), recorder:
            waits()


@pytest.mark.parametrize("what, message", [("priors", "NaN"), ("likelihood", "mixture code 3")])
def test_what_no_step_may_look_at_is_refused_at_the_end(what, message, monkeypatch, recorder):
    stack, model, codes = static_stack(monkeypatch), sum_likelihood(), torch.tensor([[0, 3, 1]])
    if what == "priors":
        stack.head[:] = torch.nan
    else:
        model.table[3] = 0.0
    steps = ReplayedFilter(stack.start(1, PARTICLES), model, codes, torch.rand(1, 3, 2 * PARTICLES + 1), 3.0).run()
    with pytest.raises(ValueError, match=message):
        search._from_replay(steps, codes)


def test_without_a_gpu_a_step_is_called_as_it_is():
    calls = []
    step = Replayed(lambda: calls.append(1), torch.device("cpu"))
    for _ in range(3):
        step()
    assert len(calls) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["sum", "counts"])
def test_the_graph_of_a_whole_step_finds_what_the_steps_one_by_one_find(kind, monkeypatch):
    stack = PriorStack([tiny_prior(seed=s, window=16, crop_codes=16).cuda() for s in range(2)])
    model = likelihood_from_tensors({name: tensor.cuda() for name, tensor in LIKELIHOODS[kind]().to_tensors().items()})
    codes = torch.randint(K, (2, LENGTH), generator=seeded(1)).cuda()
    recorded = []
    graph = torch.cuda.graph
    monkeypatch.setattr(torch.cuda, "graph", lambda *a, **k: recorded.append(1) or graph(*a, **k))
    replayed = particle_filter(stack, model, codes, PARTICLES, seeded(2))
    assert recorded
    monkeypatch.setattr(replay, "Replayed", lambda step, device: step)
    monkeypatch.setattr(decoding, "Replayed", lambda step, device: step)
    one_by_one = particle_filter(stack, model, codes, PARTICLES, seeded(2))
    for name in ("codes", "log_weights", "log_evidence", "ancestors", "drawn", "heard_weights"):
        assert torch.equal(getattr(replayed, name), getattr(one_by_one, name)), name
