// Without `validatorUrl: null` the page would send the document to a validator on the internet.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null });
