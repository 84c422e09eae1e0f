"""Optuna's studies in a database: how one is opened, and how a trial whose worker died is begun again."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tfopt.core.errors import InvalidArgumentError, TfoptError, first_line
from tfopt.core.journal import check_settings
from tfopt.tuner.journal import DEATHS, FAILED, Run, Trial
from tfopt.tuner.objective import Objective
from tfopt.tuner.packages import load
from tfopt.tuner.samplers import new_study

HEARTBEAT = 30  # seconds between two signs of life of a worker
GRACE = 120  # seconds without one, until the trial of a worker is begun again
RECORD, NUMBER = "tfopt trial", "tfopt number"  # attributes of a trial: what came of it, and which one it continues
_DIED, _SETTINGS = "tfopt deaths", "tfopt settings"
_CONNECT = 10  # seconds to wait for a database
_ATTEMPTS = 5  # to make the tables, which another worker may be making, too


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a search in a storage is.

    Args:
        url: of a database, as SQLAlchemy has it.
        name: of the study.
        settings: `{name: fingerprint}` of all that the trials depend on.
    """

    url: str
    name: str
    settings: Mapping[str, str]


def open_storage(address: Address) -> Any:
    """Optuna's storage in a database, in which workers give signs of life.

    Raises:
        InvalidArgumentError: the driver of the database is not installed.
    """
    return _storage(_address(address.url))


def open_study(
    storage: Any, address: Address, objectives: Sequence[Objective], sampler: Any, end: Callable[[], None]
) -> Any:
    """The study of that name, made if it is not there.

    Args:
        end: called once the sampler has nothing left to propose.

    Raises:
        InvalidArgumentError: it has other settings.
    """
    name, settings = address.name, address.settings
    study = new_study(objectives, sampler, end, storage=storage, study_name=name, load_if_exists=True)
    has_begun = bool(study.get_trials(deepcopy=False))  # looked at first: another worker may begin the search now
    if _SETTINGS not in study.user_attrs:
        if has_begun:
            raise InvalidArgumentError("`name` must be free, or that of an earlier search.", received=repr(name))
        study.set_user_attr(_SETTINGS, dict(settings))
    check_settings(study.user_attrs[_SETTINGS], settings, "name", f"'{name}'")
    return study


class SignsOfLife:
    """Tells a storage every `HEARTBEAT` seconds that a trial is under way, until its `end`.

    Args:
        name: of the study.
        number: of the trial in it.
    """

    def __init__(self, storage: Any, name: str, number: int):
        study = storage.get_study_id_from_name(name)
        self._storage, self._trial = storage, storage.get_trial_id_from_study_id_trial_number(study, number)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._storage.record_heartbeat(self._trial)
        self._thread.start()

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _repeat(self) -> None:
        failures = load("sqlalchemy").exc.SQLAlchemyError, load("optuna").exceptions.StorageInternalError
        while not self._is_over.wait(self._storage.get_heartbeat_interval()):
            with contextlib.suppress(*failures):  # the next sign may come through
                self._storage.record_heartbeat(self._trial)


def record_of(trial: Any) -> Trial | None:
    """What came of a trial of Optuna, if it is over."""
    found = trial.user_attrs.get(RECORD)
    return None if found is None else Trial(**{**found, "runs": tuple(Run(**run) for run in found["runs"])})


def begin_again(study: Any, trial: Any, has_died: bool = True) -> None:
    """Queues the trial of a worker that is gone for the next that is free, or gives it up after too many deaths."""
    optuna = load("optuna")
    number = trial.user_attrs.get(NUMBER, trial.number)
    deaths = trial.user_attrs.get(_DIED, 0) + has_died
    kept: dict[str, Any] = {NUMBER: number, _DIED: deaths}
    state = optuna.trial.TrialState.WAITING
    if deaths >= DEATHS:
        state = optuna.trial.TrialState.FAIL
        given_up = Trial(number, dict(trial.params), FAILED, reason=f"{deaths} workers died in it")
        kept[RECORD] = dataclasses.asdict(given_up)
    study.add_trial(
        optuna.create_trial(state=state, params=trial.params, distributions=trial.distributions, user_attrs=kept)
    )


def fail_stale(study: Any) -> None:
    """Begins the trials again of which there was no sign of life for `GRACE` seconds."""
    optuna = load("optuna")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


@contextmanager
def clear_errors(url: str) -> Iterator[None]:
    """Turns errors of a database into ones that say what to do, without its password."""
    alchemy = load("sqlalchemy")
    try:
        yield
    except (alchemy.exc.SQLAlchemyError, load("optuna").exceptions.StorageInternalError) as error:
        address = _address(url)
        reason = first_line(error.__cause__ or error)
        for secret in (address.password, address.query.get("password")):
            reason = reason.replace(str(secret), "***") if secret else reason
        where = address.set(query={}).render_as_string(hide_password=True)
        raise TfoptError(
            "The database of `storage` must be within reach.",
            received=f"{where}: {reason}",
            fix="Check address, user and password; the same call goes on.",
        ) from None


def _address(url: str) -> Any:
    alchemy = load("sqlalchemy")
    try:
        address = alchemy.engine.make_url(url)
    except (alchemy.exc.ArgumentError, ValueError):
        address = None
    if address is None:  # without the error, which may quote a password
        raise InvalidArgumentError(
            "`storage` must be the address of a database.",
            fix="Such as 'postgresql://user:password@host:5432/database'.",
        )
    if address.drivername in ("postgres", "postgresql"):
        return address.set(drivername="postgresql+psycopg")
    return address


def _storage(address: Any, attempts: int = _ATTEMPTS) -> Any:
    alchemy = load("sqlalchemy")
    try:
        return _opened(address)
    except ImportError as error:
        raise InvalidArgumentError(
            f"The driver of '{address.drivername}' must be installed.",
            received=first_line(error.__cause__ or error),
            fix="pip install tfopt[distributed] has that of PostgreSQL.",
        ) from error
    except alchemy.exc.NoSuchModuleError as error:
        raise InvalidArgumentError(
            "`storage` must be a database that SQLAlchemy knows.", received=first_line(error)
        ) from None
    except alchemy.exc.SQLAlchemyError as error:
        another_makes_tables = isinstance(error, alchemy.exc.IntegrityError) or "already exists" in str(error)
        if not another_makes_tables or attempts == 1:
            raise
    time.sleep(0.5)
    return _storage(address, attempts - 1)


def _opened(address: Any) -> Any:
    optuna = load("optuna")
    options: dict[str, Any] = {"pool_pre_ping": True}
    if address.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": 60}
    elif address.get_backend_name() == "postgresql" and "connect_timeout" not in address.query:
        options["connect_args"] = {"connect_timeout": _CONNECT}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(
            address.render_as_string(hide_password=False),
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=begin_again,
        )
