"""How do the samplers' images compare with real ones, at equal cost?"""
