"""What tests share: small models and data, and the scripts that they run in processes of their own."""
