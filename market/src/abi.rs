//! The contracts' types, calls, errors and events, generated from the interface files that Solidity compiles.

#![allow(missing_docs, clippy::pedantic, clippy::too_many_arguments, clippy::disallowed_methods)]

alloy::sol! {
    #![sol(all_derives)]
    #[sol(rpc)]
    "../contracts/src/interfaces/IJobEscrow.sol"
}

alloy::sol! {
    #![sol(all_derives)]
    #[sol(rpc)]
    "../contracts/src/interfaces/INodeRegistry.sol"
}

alloy::sol! {
    #![sol(all_derives)]
    /// What the marketplace uses of OpenZeppelin's `Ownable2Step`, which both contracts are.
    #[sol(rpc)]
    interface IOwnable2Step {
        event OwnershipTransferStarted(address indexed previousOwner, address indexed newOwner);
        event OwnershipTransferred(address indexed previousOwner, address indexed newOwner);
        function owner() external view returns (address);
        function pendingOwner() external view returns (address);
    }
}

alloy::sol! {
    /// What the marketplace uses of an ERC-20 token.
    #[sol(rpc)]
    interface IERC20 {
        function approve(address spender, uint256 amount) external returns (bool);
        function allowance(address owner, address spender) external view returns (uint256);
        function balanceOf(address owner) external view returns (uint256);
        function decimals() external view returns (uint8);
        function symbol() external view returns (string);
    }
}

alloy::sol! {
    /// What an ERC-2612 token takes in place of a transaction that approves. Signed in the token's own domain.
    struct Permit {
        address owner;
        address spender;
        uint256 value;
        uint256 nonce;
        uint256 deadline;
    }

    /// What the marketplace uses of an ERC-2612 token.
    #[sol(rpc)]
    interface IERC20Permit {
        function nonces(address owner) external view returns (uint256);
        function DOMAIN_SEPARATOR() external view returns (bytes32);
    }
}

alloy::sol! {
    /// How a contract wallet says whether a signature is its own.
    #[sol(rpc)]
    interface IERC1271 {
        function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4 magicValue);
    }
}
