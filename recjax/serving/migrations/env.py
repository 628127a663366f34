"""Where Alembic applies the versions of the events' tables; `events.migrate` calls it."""
from alembic import context

if __name__ == 'env_py':  # the name under which Alembic runs this file
  context.configure(connection=context.config.attributes['connection'])
  with context.begin_transaction():
    context.run_migrations()
