"""Prefect's commands, `server start` above all, with what Prefect 3.8.8 lacks beside SQLAlchemy 2.1.

    python flows/prefect_server.py server start          needs nothing else of maskmill

SQLAlchemy 2.1 wants to be told what a bulk insert does with a value for a hybrid property. Prefect's scheduler brings
along one, `state`, and does not say; so no schedule ever makes a run, and only the server's log knows. SQLAlchemy 2.0
passed it over, and so does this; the state itself is inserted a moment later, on its own. The tests look for the runs
of a schedule: this file can go once Prefect's own server makes them. SQLAlchemy below 2.1 was rejected: postgresql://
means another driver there, psycopg2.
"""

from typing import Any

import sqlalchemy
from prefect.cli import app
from prefect.server.database.orm_models import FlowRun


def _pass_over(cls: type, mapping: dict[str, Any], value: Any) -> None:
    """What a bulk insert does with `state`."""


state: Any = sqlalchemy.inspect(FlowRun).all_orm_descriptors["state"]
state.bulk_dml_setter = _pass_over

if __name__ == "__main__":
    app()
