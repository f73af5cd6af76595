"""The modelled NPU: description, instruction set, compiler, simulators, cycles."""
