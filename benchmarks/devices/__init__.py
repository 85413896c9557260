"""How fast is each level on a device, and where do its weights live?"""
