"""What trained networks have in common: functions of `loss: params -> scalar`, never of a model."""
