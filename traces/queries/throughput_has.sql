-- throughput_has.sql - is there a throughput run in this database?
SELECT count(*) AS found FROM sqlite_schema WHERE type = 'view' AND name = 'throughput';
