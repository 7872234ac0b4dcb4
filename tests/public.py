"""Every public name, as a user writes it after `jp.`."""

import inspect

import jaxprune as jp

ROOMS = {
    name: getattr(jp, name)
    for name in (
        *("allocation", "dynamic", "at_init", "tickets", "soups", "distill", "distillation"),
        *("gates", "reparam", "calibration", "structured", "analysis", "fast", "export", "plots"),
    )
}


def exported(module):
    """Name -> value of what a module exports: functions and classes, not the modules below it."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


ROOT = exported(jp)
PUBLIC = ROOT | {
    f"{room}.{name}": value
    for room, module in ROOMS.items()
    for name, value in exported(module).items()
}
