"""What a loss is like around and between networks: functions of `params -> scalar`, of no model."""
