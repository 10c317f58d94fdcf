"""The models explorer as pure functions: two catalogs and the live feed read, merged, compared and exported."""
