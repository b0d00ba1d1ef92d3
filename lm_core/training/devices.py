"""Whether the devices a run will want are there, asked before its first stage. Loads torch only where one may be."""

from __future__ import annotations

from lm_core.runtime import Runtime, has_gpu


def check_devices(runtime: Runtime) -> None:
    """Refuse a run that would find out at its pretraining, after all stages before.

    Raises:
        MachineError: the device is not there, or there are fewer GPUs than processes.
    """
    if runtime.device == "cpu" or (runtime.device == "auto" and not has_gpu()):
        return
    from lm_core.training.launch import device_for

    device_for(runtime)
