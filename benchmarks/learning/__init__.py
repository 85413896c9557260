"""Do learned probabilities, or freer functions of time, beat the pilot's?"""
