"""How near does each sampler come to the exact path, at equal cost?"""
