"""Which order has each rule of steps, for which noise, and what does a step take?"""
