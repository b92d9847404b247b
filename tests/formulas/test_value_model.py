import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from stcli.errors import FormulaError, InputError, TensorError
from stcli.formulas import program
from stcli.formulas.parse import Formula, parse_formula
from stcli.formulas.resolve import resolve
from stcli.formulas.tree import to_text
from stcli.formulas.value_model import LOWEST, ValueModel
from tests.filters.tree_strategies import FIXED
from tests.formulas.formula_strategies import BOOLEAN_NAMES, EXACT, NAMES, NUMBER_NAMES, ROUNDED, interpret, trees

F = np.float32
CELLS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 3.4e38, 1e-45, 16777217.0]),
    st.floats(-100, 100, width=32),
)
WHOLE = {name: torch.tensor([[0.5, 2.0]]) for name in NUMBER_NAMES} | {
    name: torch.tensor([[True, False]]) for name in BOOLEAN_NAMES
}


def model_of(tree_or_text, **options) -> ValueModel:
    text = tree_or_text if isinstance(tree_or_text, str) else to_text(tree_or_text)
    return ValueModel.make("v", text, NAMES, **options)


def raw(model: ValueModel, values: dict, shape: tuple[int, int]) -> torch.Tensor:
    """The value of the formula before infinities and NaN are replaced."""
    (found,) = [part for _, part in _whole(model).parts(values)]
    return found.expand(shape)


def _whole(model: ValueModel) -> ValueModel:
    # As one part, whatever its terms: max of itself with -infinity keeps every value.
    text = f"if(1 > 0, {model.formula}, 0)"
    return ValueModel("v", parse_formula(text), model.kinds)


def torch_function(operation):
    """A rounded function as torch computes it on a whole vector; its own accuracy is tested by itself."""

    def compute(*arguments):
        given = [torch.full((64,), float(argument)) for argument in arguments]
        return F(program._CALLS[operation](*given)[0].item())

    return compute


FUNCTIONS = {name: torch_function(name) for name in (*ROUNDED, "^")}


@st.composite
def cases(draw, strategy):
    """A tree, and a table of values for its names: some [B, M], some one a query."""
    tree = draw(strategy)
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)))
    values = {}
    for name in (*NUMBER_NAMES, *BOOLEAN_NAMES):
        width = 1 if name.startswith("query.") else shape[1]
        boolean = name in BOOLEAN_NAMES
        cells = draw(
            st.lists(st.booleans() if boolean else CELLS, min_size=shape[0] * width, max_size=shape[0] * width)
        )
        values[name] = torch.tensor(cells, dtype=torch.bool if boolean else torch.float32).view(shape[0], width)
    return tree, values, shape


def one(values: dict, row: int, column: int) -> dict:
    """The values of one candidate, as numpy scalars and bools."""
    found = {}
    for name, tensor in values.items():
        cell = tensor[row, min(column, tensor.shape[1] - 1)].item()
        found[name] = cell if isinstance(cell, bool) else F(cell)
    return found


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == b


def check_equal(tree, values, shape, functions) -> None:
    try:
        model = model_of(tree)
    except FormulaError as error:
        assume("characters" not in str(error))
        raise
    scores = model.evaluate(values, torch.ones(shape, dtype=torch.bool))
    for row in range(shape[0]):
        for column in range(shape[1]):
            expected = float(interpret(tree, one(values, row, column), functions))
            expected = LOWEST if math.isnan(expected) else min(max(expected, LOWEST), -LOWEST)
            assert same(scores[row, column].item(), expected), (to_text(tree), one(values, row, column))


@FIXED
@given(cases(trees(EXACT, powers=False)))
def test_exact_formulas_equal_an_interpreter_of_the_tree(case):
    check_equal(*case, {})


@FIXED
@given(cases(trees()))
def test_any_formula_equals_an_interpreter_that_borrows_only_the_functions(case):
    tree, values, shape = case
    check_equal(tree, values, shape, FUNCTIONS)


@pytest.mark.parametrize(
    ("text", "truth", "low", "high"),
    [
        ("sqrt(task.like)", np.sqrt, 0, 1e6),
        ("exp(task.like)", np.exp, -80, 80),
        ("log(task.like)", np.log, 1e-6, 1e6),
        ("log1p(task.like)", np.log1p, -0.9, 1e6),
        ("sigmoid(task.like)", lambda x: 1 / (1 + np.exp(-x)), -80, 80),
        ("logit(task.like)", lambda x: np.log(x) - np.log1p(-x), 0.001, 0.4),
        ("task.like^0.1", lambda x: x ** np.float64(F(0.1)), 0, 1e6),
        ("task.like^-3", lambda x: x**-3.0, 0.01, 100),
        ("task.like^2", lambda x: x**2.0, -100, 100),
        ("2^task.like", lambda x: 2.0**x, -100, 100),
    ],
)
def test_rounded_functions_are_near_the_truth(text, truth, low, high):
    x = torch.from_numpy(np.random.default_rng(0).uniform(low, high, (1, 5000)).astype(np.float32))
    found = model_of(text).evaluate({"task.like": x}).double().numpy()
    expected = truth(x.double().numpy())
    # Four units in the last place of a float32, which is what vector libraries promise.
    assert np.all(np.abs(found - expected) <= 4 * 2.0**-23 * np.abs(expected) + 2.0**-126)


@pytest.mark.parametrize("width", [1, 2, 7, 64, 100, 1000])
def test_a_score_does_not_depend_on_its_place_or_its_neighbours(width, monkeypatch):
    monkeypatch.setattr(program, "TILE", 256)
    generator = torch.Generator().manual_seed(width)
    text = "sigmoid(task.like) + item.price^0.3 * query.hour - logit(sigmoid(ann_score)) * if(query.logged_in, 2, 1)"
    values = {
        name: torch.randn(5, width, generator=generator).abs() for name in ("task.like", "item.price", "ann_score")
    }
    values |= {"query.hour": torch.randn(5, 1, generator=generator), "query.logged_in": torch.rand(5, 1) > 0.5}
    model = model_of(text)
    together = model.evaluate(values)
    for row in range(5):
        alone = model.evaluate({name: value[row : row + 1] for name, value in values.items()})
        assert torch.equal(alone[0], together[row])
    order = torch.randperm(width, generator=generator)
    turned = model.evaluate({name: v[:, order] if v.shape[1] > 1 else v for name, v in values.items()})
    assert torch.equal(turned, together[:, order])
    spread = model.evaluate({name: value.expand(5, width).contiguous() for name, value in values.items()})
    assert torch.equal(spread, together)


def test_infinite_and_nan_scores_become_finite_and_empty_slots_do_not():
    task = torch.tensor([[1.0, -1.0, 0.0, math.nan, -math.inf]])
    model = model_of("task.like / 0")
    valid = torch.tensor([[True, True, True, True, False]])
    assert model.evaluate({"task.like": task}, valid).tolist() == [[-LOWEST, LOWEST, LOWEST, LOWEST, -math.inf]]
    with pytest.raises(InputError, match=r"gives NaN for 2 of 5 candidates; .*coalesce"):
        model_of("task.like / 0", nan="error").evaluate({"task.like": task}, valid)
    assert math.isfinite(model_of("exp(1000) * task.like", nan="error").evaluate({"task.like": task[:, :2]})[0, 0])


def test_constant_formulas_and_formulas_that_are_a_name():
    assert model_of("1 + 2 * exp(0)").evaluate({}, torch.ones(2, 3, dtype=torch.bool)).tolist() == [[3.0] * 3] * 2
    assert model_of("query.hour").evaluate(
        {"query.hour": torch.tensor([[1.0], [2.0]])}, torch.ones(2, 3, dtype=torch.bool)
    ).tolist() == [[1.0] * 3, [2.0] * 3]
    assert model_of("if(1 < 2, task.like, 1/0)").evaluate({"task.like": torch.ones(1, 2)}).tolist() == [[1.0, 1.0]]
    assert model_of("task.like").evaluate({"task.like": torch.empty(0, 5)}).shape == (0, 5)
    assert model_of("task.like").evaluate({"task.like": torch.empty(3, 0)}).shape == (3, 0)


def test_equal_parts_are_computed_once_and_registers_are_used_again():
    model = model_of("exp(task.like) * exp(task.like) + exp(task.like)")
    assert [step.operation for step in model.program.instructions] == ["exp", "*", "+"]
    long = model_of("+".join(["task.like * item.price"] + ["(task.like + item.price)"] * 60))
    assert sum(long.program.registers.values()) <= 3


@FIXED
@given(cases(trees(EXACT, powers=False)))
def test_parts_add_up_to_the_score(case):
    tree, values, shape = case
    values = {
        name: v if v.dtype == torch.bool else v.nan_to_num(1, 1, 1).clamp(-100, 100) for name, v in values.items()
    }
    parts = model_of(tree).parts(values)
    total = sum(part.double() for _, part in parts)
    size = sum(part.double().abs() for _, part in parts)
    whole = raw(model_of(tree), values, shape).double()
    # One rounding of each term, of each sum and of each product with a factor; less than 512 of them.
    near = (total - whole).abs() <= 512 * 2.0**-24 * size + 2.0**-120
    finite = total.isfinite() & whole.isfinite() & (size < 1e38)
    assert bool((near | ~finite).all()), to_text(tree)


def test_parts_are_terms_with_signs_and_factors():
    values = {
        "task.like": torch.tensor([[2.0]]),
        "task.share": torch.tensor([[3.0]]),
        "query.hour": torch.tensor([[5.0]]),
    }
    parts = model_of("(0.5 * task.like - task.share) * query.hour - 1").parts(values)
    assert [(text, value.item()) for text, value in parts] == [
        ("0.5 * task.like * query.hour", 5.0),
        ("-task.share * query.hour", -15.0),
        ("-1", -1.0),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task.likes", "there is no task.likes; did you mean 'task.like'"),
        ("item.prize + 1", "did you mean 'item.price'"),
        ('item."List price"', "did you mean 'item.\"list price\"'"),
        ("item.__class__", "there is no item.__class__"),
        ("item.country + 1", r"'\+' takes a number, and item.country is a string"),
        ("item.is_new * 2", r"item.is_new is a boolean; write if\(…, 1, 0\)"),
        ("if(task.like, 1, 2)", "if takes a boolean, and task.like is a number; compare it"),
        ("task.like > 1", "the score must be a number, and task.like > 1 is a boolean"),
        ("item.is_new", "the score must be a number"),
        ("not task.like + 1", "'not' takes a boolean"),
        ("-item.is_new", "'-' takes a number"),
        ("query.hour", "there is no query.hour"),
    ],
)
def test_names_and_types_are_checked(text, words):
    names = {name: kind for name, kind in NAMES.items() if not name.startswith("query.")}
    with pytest.raises(FormulaError, match=words):
        ValueModel.make("v", text, names)


def test_names_of_an_open_scope_take_the_kind_of_their_place():
    formula = parse_formula("if(query.member, query.age, 1) + task.like")
    kinds = resolve(formula, NAMES, ("query",))
    assert kinds == {"query.member": "boolean", "query.age": "number", "task.like": "number"}
    with pytest.raises(FormulaError, match=r"query\.member is a boolean"):
        resolve(parse_formula("if(query.member, query.member, 1)"), {}, ("query",))


def test_what_it_reads():
    model = model_of('task.like + item."list price" * query.hour + item.price')
    assert model.columns("item") == ("list price", "price")
    assert (model.columns("task"), model.columns("query")) == (("like",), ("hour",))


def test_wrong_tensors_are_refused():
    model = model_of("task.like + if(item.is_new, 1, 0)")
    like, new = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(TensorError, match=r"item.is_new is read and was not given"):
        model.evaluate({"task.like": like})
    with pytest.raises(TensorError, match=r"task.like: float32 .* got float64"):
        model.evaluate({"task.like": like.double(), "item.is_new": new})
    with pytest.raises(TensorError, match=r"item.is_new: bool"):
        model.evaluate({"task.like": like, "item.is_new": like})
    with pytest.raises(TensorError, match=r"one \[B, M\] expected"):
        model.evaluate({"task.like": like, "item.is_new": new[:, :2]})


def test_a_formula_prints_canonically():
    assert str(Formula("x", parse_formula("((task.a))*(1+2)").tree)) == "task.a * (1 + 2)"
