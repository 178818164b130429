"""Names under which published code imports this library's parts."""
