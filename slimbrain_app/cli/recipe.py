"""``slimbrain-tools recipe``: benchmarks of the paper, to be repeated."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from slimbrain_app.cli.arguments import Parser, misfit

if TYPE_CHECKING:
    from slimbrain_app.recipes.recipe import Comparison, Recipe

    Actions = argparse._SubParsersAction[Parser]

WIDTH = 100
METRICS = "desc-slimbrain_metrics.tsv"
# As the paper's: validation and test are 10 and 20 % of the people.
TUNING = """
[tune]
encoder = "full"
validation = 0.1
test = 0.2
"""


def add_recipe(commands: Actions) -> None:
    parser = commands.add_parser(
        "recipe", help="benchmarks of the paper: list them, print their commands, check a cohort"
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="print the commands of this one; default: list all"
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="DERIVATIVES",
        help="see what of its cohort is there, instead",
    )
    parser.add_argument(
        "--phenotype",
        type=Path,
        metavar="FILE",
        help="the cohort's own table of people, of tabs (.tsv) or commas (.csv); default: the "
        "participants.tsv of DERIVATIVES",
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="TSV",
        help="write people and outcome as an evaluation reads them",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from slimbrain_app.recipes.recipe import list_recipes, load_recipe

    _refuse_misfits(options)
    if options.name is None:
        for recipe in list_recipes():
            print(f"{recipe.name:18}  {recipe.title}")
    elif options.check is None:
        print(write_script(load_recipe(options.name)), end="")
    else:
        _check(load_recipe(options.name), options.check, options.phenotype, options.table)


def _refuse_misfits(options: argparse.Namespace) -> None:
    table = options.table
    if options.check is not None and options.name is None:
        raise misfit("recipe", "--check alone", "--check with the NAME of a recipe")
    if options.check is None and (options.phenotype or table):
        raise misfit("recipe", "them without it", "--phenotype and --table with --check")
    if table and table.suffix != ".tsv":
        raise misfit("recipe", str(table), "--table with a name that ends in .tsv")
    if table and table.resolve().is_relative_to(options.check.resolve()):
        raise misfit("recipe", str(table), "--table outside of DERIVATIVES, which are only read")
    if table and options.phenotype and table.resolve() == options.phenotype.resolve():
        raise misfit("recipe", str(table), "--table apart from --phenotype, which is only read")


def _check(recipe: Recipe, dataset: Path, phenotype: Path | None, table: Path | None) -> None:
    from slimbrain_app.cli.doctor import draw_findings
    from slimbrain_app.cli.terminal import Terminal
    from slimbrain_app.recipes.checking import check_cohort
    from slimbrain_app.recipes.people import write_people

    terminal = Terminal()
    check = check_cohort(recipe, dataset, phenotype)
    rows = ((one.name, one.state, one.found, one.advice) for one in check.findings)
    terminal.results.print(draw_findings(rows))
    if check.refusal is not None:
        raise check.refusal
    if recipe.outcome.doubt:
        terminal.say(f"Not certain: {_flow(recipe.outcome.doubt)}")
    if table is not None and check.people is not None:
        write_people(check.people, table)
        terminal.results.print(escape(f"{table}"))


def write_script(recipe: Recipe) -> str:
    """Return the commands of a recipe for a shell, and in comments what is to be known of them."""
    return "\n".join([*_describe(recipe), "", *_list_commands(recipe)])


def _describe(recipe: Recipe) -> Iterator[str]:
    data, paper, outcome = recipe.data, recipe.paper, recipe.outcome
    yield "#!/bin/sh"
    yield from _comment(f"{recipe.name}: {recipe.title}")
    yield "#"
    yield from _comment(f"Data: {data.cohort}, {data.page} ({data.terms}).")
    yield from _comment(data.naming)
    yield "#"
    yield from _comment(
        "Figures of the paper (arXiv 2512.21881, not peer reviewed) as public reviews repeat them, "
        "not checked against its text:"
    )
    for figure in paper.figures:
        yield f"#   {figure.model}, {figure.fit}: {figure.metric} {figure}"
    yield from _comment(f"Its split: {paper.split}. Ours: {recipe.ours.split}.")
    for note in paper.notes:
        yield from _comment(f"{_flow(note)}.")
    if outcome.doubt:
        yield from _comment(f"Not certain: {outcome.doubt}")


def _list_commands(recipe: Recipe) -> Iterator[str]:
    import tomli_w

    from slimbrain_app.recipes.recipe import make_settings

    name, columns = recipe.name, " or ".join(recipe.outcome.columns)
    table, settings, tuning = f"{name}.tsv", f"{name}.toml", f"{name}-tune.toml"
    yield "RAW=/data/raw                  # the cohort as a BIDS dataset"
    yield "DERIVATIVES=/data/fmriprep"
    yield "OUT=/data/slimbrain"
    yield f"PHENOTYPE=/data/phenotype.csv  # the cohort's own table, with {columns}"
    yield "MODEL=tiny                     # or your package, or the authors' weights, converted"
    yield ""
    spaces = shlex.join(recipe.output_spaces)
    yield f'fmriprep "$RAW" "$DERIVATIVES" participant --output-spaces {spaces}'
    yield ""
    yield from _comment("What is there; the table of people for all that follows.")
    yield f'slimbrain-tools recipe {name} --check "$DERIVATIVES" \\'
    yield f'    --phenotype "$PHENOTYPE" --table {table}'
    yield ""
    yield f"cat > {settings} <<'END'"
    yield tomli_w.dumps(make_settings(recipe, table)) + "END"
    yield ""
    yield from _comment("A report of each person; what it prepares, the next steps take.")
    yield 'slimbrain "$DERIVATIVES" "$OUT" participant --model "$MODEL" --save-prepared \\'
    yield f"    --task-id {shlex.join(recipe.select.tasks)}"
    yield ""
    yield 'slimbrain "$DERIVATIVES" "$OUT" group --action evaluate --model "$MODEL" \\'
    yield f"    --config {settings}"
    yield from _comment(
        f"Compare, of $OUT/{METRICS}, the rows with features = model and against = n/a, intervals "
        "(lower, upper) included, and beside them those of the other features:"
    )
    for row in recipe.ours.rows:
        yield f"#   {describe_row(row)}"
    if not recipe.identity:
        yield ""
        yield f"cat {settings} - > {tuning} <<'END'{TUNING}END"
        yield 'slimbrain "$DERIVATIVES" "$OUT" group --action finetune --model "$MODEL" \\'
        yield f"    --config {tuning} --package-name {name}"
        yield from _comment(
            f"Its last lines, also in $OUT/models/{name}/card.md, tell the test part by "
            f"{'R' if recipe.outcome.units else 'AUROC'}, which the paper does not give: they say "
            "what fine-tuning adds to a linear head, not how far the paper's figure is."
        )
    yield ""


def describe_row(row: Comparison) -> str:
    """Say where a metric of the paper has its like."""
    reading = f", read as {row.reading}" if row.reading else ""
    return (
        f"{row.figure}: outcome = {row.outcome}, scheme = {row.scheme}, metric = {row.metric}"
        f"{reading}"
    )


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        _flow(text),
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _flow(text: str) -> str:
    return " ".join(text.split())
