"""`sublora adapt`: from a folder of documents and a pretrained model to a certificate, in one command."""
