"""How do time and memory grow, and does memory stay flat for hours?"""
