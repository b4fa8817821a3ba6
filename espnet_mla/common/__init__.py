"""What every room needs and none owns: errors, whole files, tables, logs, the machine, processes, scoring's alignment."""
