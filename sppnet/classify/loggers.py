"""Where the numbers of a training run are logged: Lightning's loggers, each of which continues when the run resumes."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sppnet.runtime.files import atomic_file

# Lightning is imported by the functions, because it takes seconds, and errors of the command line should not. So they
# return Any: the types of their signatures are the schema of the section `logger`.


def tensorboard(run: Path) -> Any:
    """Logs to RUN/tensorboard."""
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(str(run), name="tensorboard", version="")


def csv(run: Path) -> Any:
    """Logs to RUN/csv/version_N/metrics.csv, a new N for each start: Lightning deletes the file of an earlier one."""
    from pytorch_lightning.loggers import CSVLogger

    return CSVLogger(str(run), name="csv")


def wandb(run: Path, *, project: str = "sppnet", entity: str | None = None, offline: bool = False) -> Any:
    """Logs to Weights & Biases; the name of the run directory is the run's id there.

    Raises ValueError if the package is missing.
    """
    from pytorch_lightning.loggers import WandbLogger

    try:
        return WandbLogger(
            project=project,
            entity=entity,
            offline=offline,
            name=run.name,
            id=run.name,
            save_dir=str(run),
            resume="allow",
        )
    except ModuleNotFoundError as error:
        raise ValueError(_missing("wandb")) from error


def mlflow(run: Path, *, experiment: str = "sppnet", tracking_uri: str | None = None) -> Any:
    """Logs to MLflow, and keeps the run's id there in RUN/mlflow_run.

    Raises ValueError if the package is missing.
    """
    from pytorch_lightning.loggers import MLFlowLogger

    place = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.absolute()}/mlflow.db"
    known = run / "mlflow_run"
    try:
        logger = MLFlowLogger(
            experiment, run_name=run.name, tracking_uri=place, run_id=known.read_text() if known.is_file() else None
        )
    except ModuleNotFoundError as error:
        raise ValueError(_missing("mlflow")) from error
    if not known.is_file():
        with atomic_file(known) as file:
            file.write(str(logger.run_id).encode())
    return logger


def check_package(logger: str) -> None:
    """Raises ValueError if the package that a logger of LOGGERS needs is not installed. Imports nothing."""
    if logger in ("wandb", "mlflow"):
        package = find_spec(logger)
        if package is None or package.origin is None:  # a folder of that name beside the command is no package
            raise ValueError(_missing(logger))


def _missing(package: str) -> str:
    return f'logger={package}: needs the package {package}: pip install "sppnet[{package}]"'


LOGGERS: dict[str, Callable[..., Any]] = {
    "tensorboard": tensorboard,
    "csv": csv,
    "wandb": wandb,
    "mlflow": mlflow,
}
