"""State that outlives a start: the store of kept responses, and the key of opaque thoughts."""

import logging
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from server.api.responses.reasoning_seal import ReasoningSeal, random_seal, seal_of
from server.api.responses.running.background import BackgroundRuns
from server.errors import CannotStart
from server.runtime.byte_budget import ByteBudget
from server.settings import ApiSettings, users_state_dir
from server.store.database import DAY_S, Database
from server.store.response_store import ResponseStore

logger = logging.getLogger("toolwire.store")

FILE = "responses.sqlite"
NO_STORE = "none"
DEFAULTS = ApiSettings()


@dataclass(frozen=True, slots=True)
class ResponsesState:
    """What routes of responses share. `budget` bounds the bytes of `runs` and of what connections remember."""

    store: ResponseStore
    seal: ReasoningSeal
    budget: ByteBudget
    runs: BackgroundRuns


def state_of(
    store: ResponseStore, seal: ReasoningSeal | None = None, settings: ApiSettings = DEFAULTS
) -> ResponsesState:
    """The state over a store. Without a seal thoughts are valid as long as this process lives."""
    budget = ByteBudget(settings.max_held_bytes)
    return ResponsesState(store, seal or random_seal(), budget, BackgroundRuns(store, settings.max_background, budget))


def open_state(settings: ApiSettings) -> ResponsesState:
    """The state that the settings name.

    A folder that cannot be written costs the memory, not the start. Raises CannotStart where --response-store names a
    database that cannot be opened.
    """
    folder = Path(settings.state_dir or users_state_dir())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        seal = seal_of(folder)
    except OSError as error:
        logger.warning("no state is kept: %s", error)
        seal = random_seal()
    return state_of(_open_store(settings, folder), seal, settings)


def _open_store(settings: ApiSettings, folder: Path) -> ResponseStore:
    if settings.response_store == NO_STORE:
        return ResponseStore(None)
    url = settings.response_store or f"sqlite:///{folder / FILE}"
    try:
        database = Database(url, settings.response_days * DAY_S, settings.response_store_bytes)
    except (SQLAlchemyError, OSError) as error:
        fault = " ".join(str(error.args[0] if error.args else error).split())
        if settings.response_store:
            raise CannotStart(f"cannot open --response-store: {fault}") from error
        logger.warning("responses are not kept: %s", fault)
        return ResponseStore(None, fault=fault)
    return ResponseStore(database, settings.response_store_bytes)
