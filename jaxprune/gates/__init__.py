"""Gates: masks that are learned. Parameters with a penalty, which become masks.

    logits -> gates (a family) -> apply_masks -> loss + penalty (a budget) -> logits ... -> masks

A gate broadcasts against its parameter: one for each weight, neuron, channel or layer. Gates are
no mask transforms; their logits are ordinary params of an ordinary optimizer.
"""
