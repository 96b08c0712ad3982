"""Alembic's entry point: runs on the connection that `Database.upgrade` hands over, inside its transaction."""

from alembic import context

from tuneloop.registry.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
