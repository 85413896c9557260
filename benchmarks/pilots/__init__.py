"""What do a pilot's predictions, plans and ways to spend a budget give?"""
