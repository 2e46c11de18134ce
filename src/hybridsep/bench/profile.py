"""Where the time of a search step goes, and how far its matrix products are from what the machine can do."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from hybridsep.bench.measure import Rates, Timing, machine_rates, product_rate, time_calls
from hybridsep.bench.models import open_separator, song_codes
from hybridsep.bench.report import Options, Row
from hybridsep.core.device import dtype_name, seeded_generator
from hybridsep.inference.decoder import PriorStack
from hybridsep.inference.search import particle_filter
from hybridsep.inference.separator import Separator

PARTICLES = (32,)
STEPS, QUICK_STEPS = 300, 8
PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"}
SOFTMAX = {"aten::_softmax", "aten::softmax"}
BY_INDEX = {
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::index_select",
    "aten::index",
    "aten::index_copy_",
    "aten::nonzero",
}
PARTS = (
    "weight products",
    "attention",
    "cache reorder",
    "rest of the priors",
    "likelihood product",
    "draw",
    "bookkeeping",
)


def bench_profile(options: Options) -> Iterator[Row]:
    """Share of every part of a step, and the weight products against the rates measured in the same run."""
    separator = open_separator(options.model, "counts", options.codes)
    counts = (options.particles,) if options.particles else (2,) if options.quick else PARTICLES
    steps = QUICK_STEPS if options.quick else STEPS
    codes = song_codes(separator, max(options.seconds, steps * separator.hop / separator.sample_rate))[:, :steps]
    rates = machine_rates(separator.stack.dtype, separator.device, options.quick)
    for particles in counts:
        yield from _profile(separator, codes, particles, options, rates)


def _profile(separator: Separator, codes: Tensor, particles: int, options: Options, rates: Rates) -> Iterator[Row]:
    def search(priors: object, likelihood: object) -> object:
        return particle_filter(priors, likelihood, codes, particles, seeded_generator(0))

    calls = {"step": lambda: search(separator.stack, separator.likelihood)}
    whole = time_calls(calls, options.repeats, options.budget_seconds, separator.device)["step"]
    per_step = whole.scaled(1 / codes.shape[1])
    common = {
        "particles": particles,
        "codes": separator.likelihood.codes,
        "length": codes.shape[1],
        "dtype": dtype_name(separator.stack.dtype),
    }
    yield Row(f"profile-{particles}/step", per_step, None, common)
    if separator.device.type != "cpu":
        return  # a step is one CUDA graph there: its operators are not seen from here
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as recorded:
        search(_NamedPriors(separator.stack), _NamedLikelihood(separator.likelihood))
    seconds = _seconds_by_part(recorded.events(), separator.stack)
    total = sum(seconds.values())
    note = "time of a step by the clock, times the share of this part's operators in the profiler's"
    for part in PARTS:
        share = seconds[part] / total
        yield Row(f"profile-{particles}/{part}", per_step.scaled(share), None, common | {"share": share, "note": note})
    products = seconds["weight products"] / total
    yield _floor_row(
        f"profile-{particles}/products", separator.stack, particles, per_step.scaled(products), rates, common
    )
    yield from _product_rows(
        f"profile-{particles}", separator.stack, particles, recorded.events(), per_step, total, common
    )


@dataclass(frozen=True)
class Product:
    """One of the products with weights in a step: `batch` times [rows, inner] × [inner, columns]."""

    name: str
    batch: int
    rows: int
    inner: int
    columns: int
    count: int

    @property
    def operations(self) -> int:
        """Floating point operations in a step."""
        return 2 * self.count * self.batch * self.rows * self.inner * self.columns


def weight_products(stack: PriorStack, particles: int) -> list[Product]:
    """The products with weights in one step of N = `particles`, layer by layer alike."""
    layer = stack.layers[0]
    named = [(f.name, getattr(layer, f.name), len(stack.layers)) for f in fields(layer)] + [("head", stack.head, 1)]
    return [
        Product(name, weight.shape[0], particles, weight.shape[1], weight.shape[2], count)
        for name, weight, count in named
    ]


def _floor_row(name: str, stack: PriorStack, particles: int, timing: Timing, rates: Rates, common: dict) -> Row:
    """All weight products of a step against the time they need at the machine's best rates."""
    products = weight_products(stack, particles)
    operations = sum(p.operations for p in products)
    weight_bytes = stack.dtype.itemsize * sum(p.count * p.batch * p.inner * p.columns for p in products)
    floor = rates.floor(operations, weight_bytes)
    work = {"flop": operations, "weight_bytes": weight_bytes} | rates.as_columns()
    note = "floor: the longer of flop over the rate of a large square product, and weight bytes over the rate of a copy"
    return Row(
        name, timing, None, common | work | {"floor_seconds": floor, "times_floor": timing.median / floor, "note": note}
    )


def _product_rows(
    name: str,
    stack: PriorStack,
    particles: int,
    events: list[FunctionEvent],
    per_step: Timing,
    total: float,
    common: dict,
) -> Iterator[Row]:
    """Rate of each product in the search, and alone."""
    spent = Counter()
    for event in events:
        if event.name in PRODUCTS:
            spent[_weight_shape(event)] += event.self_cpu_time_total
    for product in weight_products(stack, particles):
        shape = (product.batch, product.inner, product.columns)
        timing = per_step.scaled(1e-6 * spent[shape] / total)
        alone = product_rate(product.batch, product.rows, product.inner, product.columns, stack.dtype, stack.device)
        rates = {
            "flop": product.operations,
            "flop_per_second": product.operations / max(timing.median, 1e-12),
            "alone_flop_per_second": alone,
        }
        floor = product.operations / alone
        yield Row(
            f"{name}/{product.name}",
            timing,
            None,
            common | rates | {"floor_seconds": floor, "times_floor": timing.median / floor},
        )


def _seconds_by_part(events: list[FunctionEvent], stack: PriorStack) -> dict[str, float]:
    """Seconds of operators, each counted without those it calls, by part of a step."""
    weights = {(p.batch, p.inner, p.columns) for p in weight_products(stack, 1)}
    seconds = defaultdict(float)
    for event in events:
        if event.name not in _RANGES:
            seconds[_part(event, weights)] += 1e-6 * event.self_cpu_time_total
        else:
            # What the range itself takes is the interpreter, between operators.
            seconds[_RANGES[event.name]] += 1e-6 * event.self_cpu_time_total
    return seconds


_RANGES = {"priors": "rest of the priors", "posterior": "likelihood product", "draw": "draw"}


def _part(event: FunctionEvent, weights: set[tuple[int, ...]]) -> str:
    where = _range_of(event)
    if where != "priors":
        return _RANGES.get(where, "bookkeeping")
    chain = [event.name, *callers_of(event)]
    if event.name in PRODUCTS:
        return "weight products" if _weight_shape(event) in weights else "attention"
    if any(name in SOFTMAX for name in chain):
        return "attention"
    return "cache reorder" if any(name in BY_INDEX for name in chain) else "rest of the priors"


def _weight_shape(event: FunctionEvent) -> tuple[int, ...]:
    """Shape of the right factor of a product."""
    return tuple(event.input_shapes[2 if "add" in event.name else 1])


def _range_of(event: FunctionEvent) -> str:
    return next((name for name in callers_of(event) if name in _RANGES), "")


def callers_of(event: FunctionEvent) -> Iterator[str]:
    """Names of the operators and ranges that an event happened in, innermost first."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event.name


class _Named:
    """Stands for one part of a search and makes every call of it a range of the profiler."""

    def __init__(self, part: object):
        self._part = part

    def __getattr__(self, name: str) -> object:
        return getattr(self._part, name)


class _NamedPriors(_Named):
    def start(self, *args: object, **kwargs: object) -> _NamedState:
        return _NamedState(self._part.start(*args, **kwargs))


class _NamedState(_Named):
    def append(self, *args: object) -> None:
        with record_function("priors"):
            self._part.append(*args)


class _NamedLikelihood(_Named):
    def posterior(self, *args: object, **kwargs: object) -> _NamedPosterior:
        with record_function("posterior"):
            return _NamedPosterior(self._part.posterior(*args, **kwargs))


class _NamedPosterior(_Named):
    @property
    def log_evidence(self) -> Tensor:
        with record_function("posterior"):
            return self._part.log_evidence

    def draw(self, *args: object) -> Tensor:
        with record_function("draw"):
            return self._part.draw(*args)
