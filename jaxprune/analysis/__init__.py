"""Analysis: what a loss looks like around and between params. It takes `loss: params -> scalar`,
never a model.
"""
