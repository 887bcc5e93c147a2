r"""A model package with a readout of covariance, of one that was trained before there were any.

Takes the people that the package was trained on, as its settings tell them from those kept out, and
windows as they were ranked for the training.

::

    python benchmarks/readout.py COHORT PACKAGE OUT --config benchmarks/tiny.toml
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from slimbrain_app.model.packages import (
    CARD,
    copy_package,
    load_encoder,
    load_extractor,
    load_package,
)
from slimbrain_app.settings import PretrainSettings, read_settings
from slimbrain_app.training.corpus import rank_corpus, split_people
from slimbrain_app.training.readout import MOST_PEOPLE, fit_readout
from slimbrain_app.workflow.corpus import plan_corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path, help="folder with prepared runs")
    parser.add_argument("package", type=Path)
    parser.add_argument("out", type=Path, help="folder of the new package")
    parser.add_argument("--config", type=Path, help="of the training")
    options = parser.parse_args()
    settings = read_settings(PretrainSettings, options.config, {})
    package = load_package(options.package)
    plan = plan_corpus([options.cohort], options.out, settings, package.contract)
    people, _ = split_people(plan.recordings, settings.corpus.validation, settings.seed)
    items = rank_corpus(
        people[:: max(len(people) // MOST_PEOPLE, 1)],
        package.contract,
        load_extractor(package),
        settings.rank,
        settings.seed,
        lambda _done, _total: None,
    )
    readout = fit_readout(load_encoder(package), items, package.contract, torch.device("cpu"))
    card = (package.folder / CARD).read_text(encoding="utf-8")
    copy_package(package, options.out, readout=readout, card=card, dtype=torch.float16)


if __name__ == "__main__":
    main()
