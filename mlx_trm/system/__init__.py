"""The machine: backend, device, files, memory, processes; it knows no puzzle or network."""
