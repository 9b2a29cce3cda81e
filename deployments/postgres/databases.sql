-- The databases of Prefect's and of MLflow's server, each with a user of its own. For PostgreSQL's superuser; a second
-- time it changes passwords only. They come from the environment, where nobody else on the machine sees them:
--   PREFECT_DATABASE_PASSWORD=… MLFLOW_DATABASE_PASSWORD=… psql -f deployments/postgres/databases.sql
\set ON_ERROR_STOP on
\getenv prefect_password PREFECT_DATABASE_PASSWORD
\getenv mlflow_password MLFLOW_DATABASE_PASSWORD
SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest(ARRAY['prefect', 'mlflow']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
SET log_statement = 'none';
ALTER ROLE prefect PASSWORD :'prefect_password';
ALTER ROLE mlflow PASSWORD :'mlflow_password';
RESET log_statement;
SELECT format('CREATE DATABASE %I OWNER %I', name, name) FROM unnest(ARRAY['prefect', 'mlflow']) AS name
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec
REVOKE CONNECT ON DATABASE prefect FROM PUBLIC;
REVOKE CONNECT ON DATABASE mlflow FROM PUBLIC;
\connect prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;
